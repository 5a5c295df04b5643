"""Attention collapse: two statistics of attention maps, and a sentence when attention has collapsed.

Attention that spreads evenly over all regions, or gives every word the same map, adds nothing to the mean
region. Captions may still read well, so that nobody notices until pictures are drawn.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from captioning.models.base import attention_entropy

UNIFORM = 0.995  # share of the greatest possible entropy above which attention counts as even
STILL = 0.01  # mean total variation of successive maps (0 to 1) below which they count as the same


class AttentionStatistics(NamedTuple):
    """How attention is spread and how it moves; images of one region, which leave no choice, do not count.

    entropy: mean over maps, as a share of the greatest possible: 0 for one region, 1 for all alike.
    change: mean over pairs of successive maps of their total variation distance, 0 to 1.
    maps: how many maps there were; `entropy` is NaN without any.
    pairs: how many pairs there were; `change` is NaN without any.
    """

    entropy: float
    change: float
    maps: int
    pairs: int


def attention_statistics(attention: Tensor, mask: Tensor | None = None) -> AttentionStatistics:
    """Measure maps (B, T, R), zero after a caption's end, over real regions (B, R)."""
    maps = attention.float()
    regions = maps.new_full((len(maps), 1), maps.shape[-1]) if mask is None else mask.sum(1, keepdim=True)
    counted = (maps.sum(-1) > 0) & (regions > 1)  # (B, T)
    shares = attention_entropy(attention, mask)
    distances = (maps[:, 1:] - maps[:, :-1]).abs().sum(-1) / 2
    shares, distances = shares[counted], distances[counted[:, 1:]]
    return AttentionStatistics(
        float(shares.mean()), float(distances.mean()), len(shares), len(distances)
    )  # the mean of nothing is NaN


def pool(parts: Sequence[AttentionStatistics]) -> AttentionStatistics:
    """Pool the statistics of several batches, each weighted by its number of maps or pairs."""
    maps, pairs = sum(part.maps for part in parts), sum(part.pairs for part in parts)
    entropy = sum(part.entropy * part.maps for part in parts if part.maps)
    change = sum(part.change * part.pairs for part in parts if part.pairs)
    return AttentionStatistics(
        entropy / maps if maps else math.nan, change / pairs if pairs else math.nan, maps, pairs
    )


def describe_collapse(statistics: AttentionStatistics) -> str | None:
    """Describe how attention has collapsed; None if it has not."""
    if statistics.entropy > UNIFORM:
        return (
            f"it spreads evenly over all regions (entropy {statistics.entropy:.3f} of the greatest possible)"
        )
    if statistics.change < STILL:
        return (
            "it is the same map for every word (successive maps differ by "
            f"{statistics.change:.3f}, 1 would be no overlap)"
        )
    return None
