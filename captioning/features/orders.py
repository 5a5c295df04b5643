"""In which order detected regions are stored: the order in which the Attentive Translator reads them.

Liu et al. (2017) rank objects by the detector's score; area, left to right and random are for comparison.
"""

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from captioning.errors import InputError


def by_confidence(boxes: Tensor, scores: Tensor) -> Tensor:
    """Order the surest first: boxes (K, 4) x1 y1 x2 y2, scores (K,) -> positions (K,)."""
    return scores.argsort(descending=True, stable=True)


def by_area(boxes: Tensor, scores: Tensor) -> Tensor:
    """Order the largest first."""
    return ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argsort(descending=True, stable=True)


def from_left_to_right(boxes: Tensor, scores: Tensor) -> Tensor:
    """Order by the horizontal middle."""
    return (boxes[:, 0] + boxes[:, 2]).argsort(stable=True)


def at_random(boxes: Tensor, scores: Tensor) -> Tensor:
    """Shuffle, seeded by where the boxes are: the same picture always alike, another one otherwise."""
    places = (boxes * 1000).round().to(torch.int32).cpu().numpy().tobytes()
    generator = torch.Generator().manual_seed(zlib.crc32(places))
    return torch.randperm(len(scores), generator=generator).to(scores.device)


ORDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "confidence": by_confidence,
    "area": by_area,
    "left_to_right": from_left_to_right,
    "random": at_random,
}


def order_of(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Give the order of that name.

    Raises:
        InputError: there is none.
    """
    if name not in ORDERS:
        raise InputError(f"features.extractor.order is {name!r}; it is one of {', '.join(ORDERS)}")
    return ORDERS[name]
