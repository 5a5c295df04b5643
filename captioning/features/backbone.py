"""Any torchvision classification network, cut at a named node, as a source of region features.

InceptionV3 at `Mixed_7c`, for example, gives an 8 × 8 grid of 2048 channels from a 299 × 299 image whose
values run from -1 to 1. A node whose output is a vector (`flatten`, `avgpool`) gives one region. Sequences
of tokens (vision transformers) are refused; Swin transformers have their channels last in all nodes before
`permute`, so use that one.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from captioning.errors import InputError
from captioning.features.frozen import FrozenExtractor, calibration_images
from captioning.features.weights import build_published, load_state, read_state
from captioning.files import is_file_name


class Backbone(FrozenExtractor):
    """A network cut at a node, with the image transform that belongs to it.

    Args:
        architecture: a name of `torchvision.models.list_models`, for example `inception_v3`.
        node: the node whose output is the grid; `torchvision.models.feature_extraction.get_graph_node_names`
            lists them.
        weights: a torchvision weight name (`IMAGENET1K_V1`; downloaded once), the path of a state dict, or
            `random`: seeded weights with calibrated BatchNorm statistics, for tests and the toy set.
        image_size: height and width in pixels; the aspect ratio is not kept, so that the grid covers the
            image.
        mean: per channel, subtracted from values between 0 and 1.
        std: per channel, divides the difference.
        seed: of the random weights.
        state: the tensors of `weights`, where a portable file brings them; nothing else is then read.

    Raises:
        InputError: unknown architecture, node or weights, a node whose output is no grid, or a state dict
            that lacks what the node needs.
    """

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
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(
            architecture=architecture,
            node=node,
            weights=weights,
            image_size=image_size,
            mean=mean,
            std=std,
            seed=seed,
        )
        self.set_normalisation(mean, std)
        self._architecture, self._node = architecture, node
        network = _build(architecture, weights if state is None else "random", seed)
        self.network = _cut(network, architecture, node)
        if state is not None:
            self.restore(state)
        else:
            if is_file_name(weights):
                self._load(Path(weights))
            self.freeze(weights, calibration_images([9] * 16, self.image_size, seed))
        self.measure()

    def forward(self, images: Tensor) -> Tensor:
        """Compute the grid of each image.

        Args:
            images: (B, 3, h, w) bytes, as `transform` gives them.

        Returns:
            (B, H, W, D) float32.
        """
        grid = self.network(self.normalise(images))["grid"].float()  # (B, D, H, W), or (B, D)
        if grid.dim() == 2:
            grid = grid[:, :, None, None]  # (B, D, 1, 1)
        if grid.dim() != 4:
            raise InputError(
                f"node {self._node!r} of {self._architecture} has an output of shape {tuple(grid.shape[1:])} "
                "per image, not channels × height × width; choose another node"
            )
        return grid.permute(0, 2, 3, 1)  # (B, H, W, D)

    def _load(self, path: Path) -> None:
        state = read_state(path)
        load_state(
            self.network,
            state,
            source=path,
            needs=f"{self._architecture} needs up to node {self._node}",
            remedy="choose an earlier node or other weights",
        )
        self.missing_weights = self._missing_beyond_node(state)

    def _missing_beyond_node(self, state: Mapping[str, Tensor]) -> list[str]:
        """List the layers that the file lacks; `load_state` has made sure that all lie beyond the node."""
        whole = torchvision.models.get_model(self._architecture, **_build_options(self._architecture))
        absent = (name for name in whole.state_dict() if name not in state and "num_batches" not in name)
        return sorted({name.rpartition(".")[0] for name in absent})


def _build_options(architecture: str) -> dict[str, Any]:
    if architecture not in ("inception_v3", "googlenet"):
        return {}
    # `init_weights` is slow and of no use: weights are loaded or drawn anew. `transform_input` converts
    # ImageNet-normalised input; ours has the range of the network already.
    return {"init_weights": False, "transform_input": False, "aux_logits": True}


def _build(architecture: str, weights: str, seed: int) -> nn.Module:
    try:
        torchvision.models.get_model_builder(architecture)
    except ValueError as error:
        raise InputError(
            f"torchvision has no model {architecture!r}; torchvision.models.list_models() lists them"
        ) from error
    if weights == "random" or is_file_name(weights):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = torchvision.models.get_model(architecture, **_build_options(architecture))
            for module in model.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        return model
    model = build_published(architecture, weights)
    if hasattr(model, "transform_input"):  # switched on by torchvision together with published weights
        model.transform_input = False
    return model


def _cut(model: nn.Module, architecture: str, node: str) -> nn.Module:
    try:
        return create_feature_extractor(model.eval(), {node: "grid"})
    except ValueError as error:
        layers = ", ".join(name for name, _ in model.named_children())
        raise InputError(f"{architecture} has no node {node!r}; its outermost layers are {layers}") from error
