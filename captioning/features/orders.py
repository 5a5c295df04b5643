"""The order in which detected regions are stored, and so read by the Attentive Translator.

Liu et al. (2017) rank objects by the detector's score; area, left to right and random are for comparison.
Every order takes boxes (K, 4) x1 y1 x2 y2 and scores (K,), and returns positions (K,).
"""

import zlib
from collections.abc import Callable

import torch
from torch import Tensor

from captioning.errors import InputError


def by_confidence(boxes: Tensor, scores: Tensor) -> Tensor:
    """Highest score first."""
    return scores.argsort(descending=True, stable=True)


def by_area(boxes: Tensor, scores: Tensor) -> Tensor:
    """Largest box first."""
    return ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).argsort(descending=True, stable=True)


def from_left_to_right(boxes: Tensor, scores: Tensor) -> Tensor:
    """Leftmost centre first."""
    return (boxes[:, 0] + boxes[:, 2]).argsort(stable=True)


def at_random(boxes: Tensor, scores: Tensor) -> Tensor:
    """A shuffle that depends on the boxes alone: the same image gives the same order in every run."""
    # Rounded, so that the last bits of a box do not change the seed.
    content = (boxes * 1000).round().to(torch.int32).cpu().numpy().tobytes()
    generator = torch.Generator().manual_seed(zlib.crc32(content))
    return torch.randperm(len(scores), generator=generator).to(scores.device)


ORDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "confidence": by_confidence,
    "area": by_area,
    "left_to_right": from_left_to_right,
    "random": at_random,
}


def order_named(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Look up an order.

    Raises:
        InputError: there is none of this name.
    """
    if name not in ORDERS:
        raise InputError(f"features.extractor.order is {name!r}; choose one of {', '.join(ORDERS)}")
    return ORDERS[name]
