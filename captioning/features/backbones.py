"""Any torchvision classification network, cut at a named node, as a source of region features.

The seed system's choice is InceptionV3 at `Mixed_7c`: an 8 × 8 grid of 2048 channels from a 299 × 299 picture
whose values run from -1 to 1. A node whose output is a vector (`flatten`, `avgpool`) gives one region. The
networks are frozen: they run once an image, and their output is cached.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from captioning.errors import InputError
from captioning.features.weights import (
    build_published,
    digest,
    is_file_name,
    load_state,
    read_state,
    weights_name,
)


class Backbone(nn.Module):
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
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self._mean: Tensor
        self._scale: Tensor
        self.register_buffer("_mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("_scale", 1 / (torch.tensor(std).view(1, 3, 1, 1) * 255), persistent=False)
        self.missing_weights: list[str] = []
        self.provenance: dict[str, Any] = {
            "architecture": architecture,
            "node": node,
            "weights": weights_name(weights),
            "image_size": list(self.image_size),
            "mean": list(mean),
            "std": list(std),
        }
        self.network = _cut(_build(architecture, weights, seed), architecture, node)
        if weights == "random":
            self.provenance["seed"] = seed
            self._calibrate(seed)
        elif is_file_name(weights):
            self.provenance["weights_sha256"] = self._load(Path(weights))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: the network is frozen."""
        return super().train(False)

    def transform(self, image: Image.Image) -> Tensor:
        """Resize an RGB picture: (3, H, W) bytes."""
        height, width = self.image_size
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    def forward(self, images: Tensor) -> Tensor:
        """See pictures as regions.

        Args:
            images: (B, 3, H, W) bytes, as `transform` gives them.

        Returns:
            (B, R, D) float32; regions run row by row from the top left.
        """
        pixels = (images.float() - self._mean) * self._scale
        grid = self.network(pixels.contiguous(memory_format=torch.channels_last))["grid"].float()
        if grid.dim() == 2:
            return grid[:, None]  # (B, 1, D)
        return grid.flatten(2).transpose(1, 2)  # (B, R, D)

    @torch.no_grad()
    def shape(self) -> tuple[int, int]:
        """Number of regions and of channels, found by a trial run: (R, D)."""
        regions, channels = self(torch.zeros(1, 3, *self.image_size, dtype=torch.uint8)).shape[1:]
        return regions, channels

    def _load(self, path: Path) -> str:
        state, architecture = read_state(path), self.provenance["architecture"]
        load_state(
            self.network,
            state,
            source=path,
            needs=f"{architecture} needs up to node {self.provenance['node']}",
            remedy="choose an earlier node or other weights",
        )
        self.missing_weights = self._beyond_node(state)
        return digest(path)

    def _beyond_node(self, state: Mapping[str, Tensor]) -> list[str]:
        """List layers that the file lacks and the node does without; it should be said."""
        whole = torchvision.models.get_model(
            self.provenance["architecture"], **_build_options(self.provenance)
        )
        absent = (name for name in whole.state_dict() if name not in state and "num_batches" not in name)
        return sorted({name.rpartition(".")[0] for name in absent})

    @torch.no_grad()
    def _calibrate(self, seed: int) -> None:
        """Give every BatchNorm the statistics of smooth random pictures; without them activations explode."""
        generator = torch.Generator().manual_seed(seed)
        patches = torch.rand(16, 3, 9, 9, generator=generator) * 255
        pictures = nn.functional.interpolate(patches, self.image_size, mode="bicubic").clamp(0, 255)
        norms = [module for module in self.network.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the mean over the batches: with one batch, its own statistics
            norm.reset_running_stats()
            norm.train()
        self.forward(pictures.to(torch.uint8))


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
