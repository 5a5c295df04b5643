"""Any torchvision classification network, cut at a named node, as a source of region features.

The seed system's choice is InceptionV3 at `Mixed_7c`: an 8 × 8 grid of 2048 channels from a 299 × 299 picture
whose values run from -1 to 1. A node whose output is a vector (`flatten`, `avgpool`) gives one region. The
networks are frozen: they run once an image, and their output is cached.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from captioning.errors import InputError
from captioning.features.frozen import FrozenNetwork, smooth_pictures
from captioning.features.weights import build_published, is_file_name, load_state, read_state


class Backbone(FrozenNetwork):
    """A picture transform and a network cut at a node.

    Args:
        architecture: a name of `torchvision.models.list_models`, for example `inception_v3`.
        node: the node whose output is the grid; `torchvision.models.feature_extraction.get_graph_node_names`
            lists them.
        weights: a torchvision weight name (`IMAGENET1K_V1`; downloaded once), the path of a state dict, or
            `random`: seeded weights whose BatchNorm statistics are calibrated, for tests and the toy set.
        image_size: height and width in pixels; the aspect is not kept, so that the grid covers the picture.
        mean: per channel, subtracted from values between 0 and 1.
        std: per channel, what the difference is divided by.
        seed: of the random weights.

    Raises:
        InputError: unknown architecture, node or weights, or a state dict that lacks what the node needs.
    """

    has_boxes = False

    def __init__(
        self,
        *,
        architecture: str,
        node: str,
        weights: str,
        image_size: Sequence[int],
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
    ) -> None:
        super().__init__(architecture=architecture, weights=weights, image_size=image_size)
        self.provenance |= {"node": node, "mean": list(mean), "std": list(std)}
        self.normalise_by(mean, std)
        self.network = _cut(_build(architecture, weights, seed), architecture, node)
        if is_file_name(weights):
            self._load(Path(weights))
        self.freeze(weights, seed, smooth_pictures([9] * 16, self.image_size, seed))

    def forward(self, images: Tensor) -> Tensor:
        """See pictures as regions.

        Args:
            images: (B, 3, H, W) bytes, as `transform` gives them.

        Returns:
            (B, R, D) float32; regions run row by row from the top left.
        """
        grid = self.network(self.pixels(images))["grid"].float()
        if grid.dim() == 2:
            return grid[:, None]  # (B, 1, D)
        return grid.flatten(2).transpose(1, 2)  # (B, R, D)

    @torch.no_grad()
    def shape(self) -> tuple[int, int]:
        """Number of regions and of channels, found by a trial run: (R, D)."""
        regions, channels = self(torch.zeros(1, 3, *self.image_size, dtype=torch.uint8)).shape[1:]
        return regions, channels

    def _load(self, path: Path) -> None:
        state, architecture = read_state(path), self.provenance["architecture"]
        load_state(
            self.network,
            state,
            source=path,
            needs=f"{architecture} needs up to node {self.provenance['node']}",
            remedy="choose an earlier node or other weights",
        )
        self.missing_weights = self._beyond_node(state)

    def _beyond_node(self, state: Mapping[str, Tensor]) -> list[str]:
        """List layers that the file lacks and the node does without; it should be said."""
        whole = torchvision.models.get_model(
            self.provenance["architecture"], **_build_options(self.provenance)
        )
        absent = (name for name in whole.state_dict() if name not in state and "num_batches" not in name)
        return sorted({name.rpartition(".")[0] for name in absent})


def _build_options(provenance: Mapping[str, Any]) -> dict[str, Any]:
    inception = provenance["architecture"] in ("inception_v3", "googlenet")
    # Both transform ImageNet-normalised input by themselves when they load weights; ours comes in their own
    # range.
    return {"init_weights": False, "transform_input": False, "aux_logits": True} if inception else {}


def _build(architecture: str, weights: str, seed: int) -> nn.Module:
    try:
        torchvision.models.get_model_builder(architecture)
    except ValueError as error:
        raise InputError(
            f"torchvision has no model {architecture!r}; torchvision.models.list_models() lists them"
        ) from error
    options = _build_options({"architecture": architecture})
    if weights == "random" or is_file_name(weights):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = torchvision.models.get_model(architecture, **options)
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        return model
    model = build_published(architecture, weights)
    if hasattr(model, "transform_input"):
        model.transform_input = False
    return model


def _cut(model: nn.Module, architecture: str, node: str) -> nn.Module:
    try:
        return create_feature_extractor(model.eval(), {node: "grid"})
    except ValueError as error:
        layers = ", ".join(name for name, _ in model.named_children())
        raise InputError(f"{architecture} has no node {node!r}; its outer layers are {layers}") from error
