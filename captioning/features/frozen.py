"""What every network that sees pictures here has in common: one size of picture, and weights that stay."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from captioning.features.weights import digest, is_file_name, weights_name


class FrozenNetwork(nn.Module):
    """A picture transform, and a network that runs once an image; a subclass sets `network` and `forward`.

    Args:
        architecture: a name of torchvision's.
        weights: a torchvision weight name, the path of a state dict, or `random`.
        image_size: height and width in pixels that every picture is resized to, without keeping its aspect.
    """

    network: Any

    def __init__(self, *, architecture: str, weights: str, image_size: Sequence[int]) -> None:
        super().__init__()
        self.image_size = (int(image_size[0]), int(image_size[1]))
        self.missing_weights: list[str] = []
        self.provenance: dict[str, Any] = {
            "architecture": architecture,
            "weights": weights_name(weights),
            "image_size": list(self.image_size),
        }
        self._mean: Tensor
        self._scale: Tensor

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode: the network is frozen."""
        return super().train(False)

    def transform(self, image: Image.Image) -> Tensor:
        """Resize an RGB picture: (3, H, W) bytes."""
        height, width = self.image_size
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalise bytes (B, 3, H, W) to the range the network was trained on, channels last."""
        values = (images.float() - self._mean) * self._scale
        return values.contiguous(memory_format=torch.channels_last)

    def normalise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and the deviation of each channel, of values between 0 and 1."""
        mean_of_bytes, std_of_bytes = (torch.tensor(part).view(1, 3, 1, 1) * 255 for part in (mean, std))
        self.register_buffer("_mean", mean_of_bytes, persistent=False)
        self.register_buffer("_scale", 1 / std_of_bytes, persistent=False)

    def freeze(self, weights: str, seed: int, pictures: Tensor) -> None:
        """Say in `provenance` which weights these are, and stop training them.

        Random weights get the BatchNorm statistics of the pictures, without which activations explode.

        Args:
            weights: as given to the constructor.
            seed: of random weights.
            pictures: (B, 3, h, w) patches, values 0 to 255 before clamping, at the network's size.
        """
        self.requires_grad_(False).eval()
        if weights == "random":
            self.provenance["seed"] = seed
            self._calibrate(pictures)
        elif is_file_name(weights):
            self.provenance["weights_sha256"] = digest(Path(weights))

    @torch.no_grad()
    def _calibrate(self, pictures: Tensor) -> None:
        for norm in self.network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = None  # the mean over the batches: with one batch, its own statistics
                norm.reset_running_stats()
                norm.train()
        self(pictures.clamp(0, 255).to(torch.uint8))
        self.eval()


def smooth_pictures(sides: Sequence[int], image_size: Sequence[int], seed: int) -> Tensor:
    """Draw random pictures from smooth to fine, by the sides of the patches they are blown up from.

    Returns:
        (len(sides), 3, H, W), values about 0 to 255.
    """
    generator = torch.Generator().manual_seed(seed)
    patches = [torch.rand(1, 3, side, side, generator=generator) * 255 for side in sides]
    resized = [nn.functional.interpolate(patch, tuple(image_size), mode="bicubic") for patch in patches]
    return torch.cat(resized)
