"""What an extractor returns for a batch of images: region features, and for detectors boxes and scores."""

from typing import NamedTuple

import torch
from torch import Tensor

from captioning.features.cache import Row


class RegionFeatures(NamedTuple):
    """The regions of B images.

    features: (B, R, D); of an image with fewer regions the last rows are zero.
    counts: (B,) number of real regions, or None where every image has all R.
    boxes: (B, R, 4) x1 y1 x2 y2 as fractions of width and height, or None for a grid.
    scores: (B, R) confidence of the detector, 0 to 1, or None for a grid.
    """

    features: Tensor
    counts: Tensor | None = None
    boxes: Tensor | None = None
    scores: Tensor | None = None

    @classmethod
    def of(cls, output: "Tensor | RegionFeatures") -> "RegionFeatures":
        """Wrap the output of any extractor: this class, regions (B, R, D), or a grid (B, H, W, D)."""
        if isinstance(output, RegionFeatures):
            return output
        # Grids are read row by row from the top left.
        return cls(output.flatten(1, -2))  # (B, R, D)

    @property
    def mask(self) -> Tensor | None:
        """True at real regions: (B, R), or None where all are."""
        if self.counts is None:
            return None
        return torch.arange(self.features.shape[1], device=self.counts.device) < self.counts[:, None]

    def rows(self) -> list[Row]:
        """Split into what the cache stores, one row per image."""
        # Rounded by torch: numpy takes forty times as long.
        features = self.features.half().cpu().numpy()
        counts, boxes, scores = (None if part is None else part.float().cpu().numpy() for part in self[1:])
        return [
            Row(
                features[position],
                features.shape[1] if counts is None else int(counts[position]),
                None if boxes is None else boxes[position],
                None if scores is None else scores[position],
            )
            for position in range(len(features))
        ]
