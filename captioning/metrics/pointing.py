"""The pointing score: how often attention lies on what a word names (pointing game, Zhang et al. 2016).

A word hits where the centre of its most attended region lies in a box of what it names. There is no tolerance
around the boxes. Words that name nothing, or something that is not there, do not count: what a caption says
wrongly is a matter of the other metrics.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np


class Pointing(NamedTuple):
    """Words that hit, and words that name something whose place is known."""

    hits: int
    words: int

    @property
    def score(self) -> float:
        """The share of words that hit, 0 to 1; NaN without words."""
        return self.hits / self.words if self.words else float("nan")


def score_pointing(attention: np.ndarray, regions: np.ndarray, places: Mapping[int, np.ndarray]) -> Pointing:
    """Score the attention of one caption.

    Args:
        attention: (T, R) weights of each word over the regions.
        regions: (R, 4) boxes of the regions, x1 y1 x2 y2 as fractions of the picture.
        places: for the position of each word that names something, the boxes (n, 4) of all it may mean.
    """
    centres = (regions[:, :2] + regions[:, 2:]) / 2  # (R, 2)
    hits = 0
    for position, boxes in places.items():
        x, y = centres[attention[position].argmax()]
        left, top, right, bottom = np.asarray(boxes).T  # (n,) each
        hits += bool(((left <= x) & (x <= right) & (top <= y) & (y <= bottom)).any())
    return Pointing(hits, len(places))


def pool_pointing(parts: Iterable[Pointing]) -> Pointing:
    """Add up the words of several captions."""
    hits, words = zip((0, 0), *parts, strict=True)
    return Pointing(sum(hits), sum(words))
