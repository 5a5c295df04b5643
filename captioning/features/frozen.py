"""The parent of every extractor: a network with fixed weights that turns images into region features.

It knows one image size, normalisation, calibration of random weights, and what the feature cache records
about the network (`provenance`). It has no architecture. An extractor of your own needs a constructor and
`forward`:

    class MyExtractor(FrozenExtractor):
        def __init__(self, *, weights: str, image_size: Sequence[int]) -> None:
            super().__init__(weights=weights, image_size=image_size)
            self.set_normalisation([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
            self.network = ...
            self.freeze(weights)
            self.measure()

        def forward(self, images: Tensor) -> Tensor:
            return self.network(self.normalise(images)).permute(0, 2, 3, 1)  # (B, H, W, D)

For `captioning export` the constructor also takes `state: Mapping[str, Tensor] | None = None` and, where it
is given, calls `self.restore(state)` instead of reading `weights` and calling `self.freeze`.
"""

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from captioning.features.region_features import RegionFeatures
from captioning.features.weights import load_state, sha256_prefix
from captioning.files import is_file_name, weights_name

NORMALISATION = {"_mean", "_scale"}  # buffers that `set_normalisation` makes


class FrozenExtractor(nn.Module):
    """Transforms an image, then runs a frozen network on it.

    `forward` takes what `transform` gives, stacked: (B, 3, H, W) bytes. It returns a grid (B, H, W, D),
    regions without a place (B, R, D), or `RegionFeatures` for detectors; `RegionFeatures.of` accepts all
    three.

    Args:
        image_size: height and width in pixels; images are resized to it without keeping their aspect ratio.
        **options: all other constructor options of the subclass, for `expected_provenance`.

    Attributes:
        provenance: what the cache records: `expected_provenance` of the options, and what only the built
            network knows (`weights_sha256`, `grid`). Plain JSON values.
        num_regions: R.
        feature_dim: D.
        grid: rows and columns of the regions, (H, W); None where regions are boxes.
        missing_weights: layers that the weights file lacks and the features do not need.
    """

    has_boxes = False
    network: Any
    num_regions: int
    feature_dim: int
    grid: tuple[int, int] | None = None

    def __init__(self, *, image_size: Sequence[int], **options: Any) -> None:
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.provenance = self.expected_provenance(image_size=image_size, **options)
        self.missing_weights: list[str] = []
        self._mean: Tensor
        self._scale: Tensor

    @classmethod
    def expected_provenance(cls, **options: Any) -> dict[str, Any]:
        """Return what a cache made with these constructor options must record, without building the network.

        Weights files are compared by name, without their folder; a seed counts only for random weights.
        """
        expected = {key: _plain(value) for key, value in options.items()}
        if "weights" in expected:
            expected["weights"] = weights_name(expected["weights"])
            if expected["weights"] != "random":
                expected.pop("seed", None)
        return expected

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the network is frozen."""
        return super().train(False)

    def transform(self, image: Image.Image) -> Tensor:
        """Resize an RGB image: (3, H, W) bytes. It may not use the network, see `without_network`."""
        height, width = self.image_size
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)  # (3, H, W)

    def without_network(self) -> Self:
        """Copy what `transform` needs, for loader processes: not every network can be pickled."""
        copied = copy.copy(self)
        copied.__dict__.update(_modules={}, _parameters={}, _buffers={})
        return copied

    def set_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set mean and standard deviation of each channel, for values between 0 and 1."""
        # Scaled to bytes once here, so that `normalise` is one subtraction and one product.
        mean_of_bytes, std_of_bytes = (torch.tensor(part).view(1, 3, 1, 1) * 255 for part in (mean, std))
        self.register_buffer("_mean", mean_of_bytes)
        self.register_buffer("_scale", 1 / std_of_bytes)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise bytes (B, 3, H, W) to the range the network was trained on, in channels-last memory."""
        # Arranged as bytes and changed in place: a third of the time of arranging float32.
        images = images.contiguous(memory_format=torch.channels_last)
        return images.to(torch.float32, copy=True).sub_(self._mean).mul_(self._scale)

    def freeze(self, weights: str, calibration: Tensor | None = None) -> None:
        """Switch off gradients and identify the weights in `provenance`.

        Args:
            weights: as given to the constructor.
            calibration: (B, 3, H, W) images, values about 0 to 255, for the BatchNorm statistics of random
                weights; without it they stay as initialised.
        """
        self.requires_grad_(False).eval()
        if weights == "random" and calibration is not None:
            self._calibrate(calibration)
        elif is_file_name(weights):
            self.provenance["weights_sha256"] = sha256_prefix(Path(weights))

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load the tensors of a portable file and switch off gradients.

        Args:
            state: as `used_tensors` returned it, of any floating-point type.

        Raises:
            InputError: a tensor has another shape than the extractor's.
        """
        # What the features do not use is not in the file and stays as initialised.
        load_state(
            self,
            {**self.state_dict(), **state},
            source="the portable file",
            needs=f"{type(self).__name__} needs",
            remedy="export it again",
        )
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def used_tensors(self) -> dict[str, Tensor]:
        """Return the parameters and buffers that `forward` uses, found by a trial run; {} without weights."""
        parts = chain(self.parameters(), self.buffers())
        device = next((part.device for part in parts), torch.device("cpu"))
        with _UsedTensors() as used:
            self(torch.zeros(1, 3, *self.image_size, dtype=torch.uint8, device=device))
        # With `keep_vars` these are the network's own tensors, not new views of them.
        state = self.state_dict(keep_vars=True)
        found = {name: part.detach() for name, part in state.items() if id(part) in used.ids}
        # The constructor makes the normalisation; it is a part of trained weights, but none by itself.
        return found if {name.rpartition(".")[2] for name in found} - NORMALISATION else {}

    @torch.no_grad()
    def measure(self) -> None:
        """Find `num_regions`, `feature_dim` and `grid` by a trial run on a black image."""
        output = self(torch.zeros(1, 3, *self.image_size, dtype=torch.uint8))
        if isinstance(output, Tensor) and output.dim() == 4:
            self.grid = (output.shape[1], output.shape[2])
            self.provenance["grid"] = list(self.grid)
        self.num_regions, self.feature_dim = RegionFeatures.of(output).features.shape[1:]

    @torch.no_grad()
    def _calibrate(self, images: Tensor) -> None:
        # With the initial statistics (mean 0, variance 1) the activations of a deep random network explode.
        for norm in self.network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = None  # the mean over all batches: with one batch, its own statistics
                norm.reset_running_stats()
                norm.train()
        self(images.clamp(0, 255).to(torch.uint8))
        self.eval()


class _UsedTensors(TorchFunctionMode):
    """Notes the identity of every tensor that is given to a function of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.ids |= {id(part) for part in tree_leaves((args, kwargs)) if isinstance(part, Tensor)}
        return func(*args, **kwargs)


def calibration_images(sides: Sequence[int], image_size: Sequence[int], seed: int) -> Tensor:
    """Draw random images for `FrozenExtractor.freeze`, one per entry of `sides`.

    Each is blown up from a patch of side × side random pixels: the smaller the side, the smoother the image.

    Returns:
        (len(sides), 3, H, W), values about 0 to 255.
    """
    generator = torch.Generator().manual_seed(seed)
    patches = [torch.rand(1, 3, side, side, generator=generator) * 255 for side in sides]
    resized = [nn.functional.interpolate(patch, tuple(image_size), mode="bicubic") for patch in patches]
    return torch.cat(resized)  # (B, 3, H, W)


def _plain(value: Any) -> Any:
    """Turn tuples and config containers into the lists and dicts that JSON knows."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
