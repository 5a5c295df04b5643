"""Does attention look anywhere in particular? Two numbers, and a sentence when it has collapsed.

An attention that spreads evenly over all regions, or shows every word the same map, adds nothing to the mean
region; captions may still read well, so nobody notices until the pictures are drawn.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

UNIFORM = 0.995
"""Share of the greatest possible entropy from which on attention counts as even."""
STILL = 0.01
"""Mean distance of successive maps (total variation, 0 to 1) below which they count as the same."""


class AttentionStatistics(NamedTuple):
    """Means over the words of captions.

    entropy: as a share of the greatest possible, 0 for one region and 1 for all regions alike.
    change: total variation distance between a word's map and the next word's, 0 to 1; NaN if no caption has
        two words.
    words: how many maps there were.
    """

    entropy: float
    change: float
    words: int


def attention_statistics(attention: Tensor, mask: Tensor | None = None) -> AttentionStatistics:
    """Measure maps (B, T, R), zero after a caption's end, over real regions (B, R)."""
    maps = attention.float()
    spoken = maps.sum(-1) > 0  # (B, T)
    regions = maps.new_full((len(maps), 1), maps.shape[-1]) if mask is None else mask.sum(1, keepdim=True)
    share = torch.special.entr(maps).sum(-1) / regions.float().log().clamp(min=1e-6)  # (B, T)
    single = (regions == 1).expand_as(spoken)  # one region: there is nothing to choose
    distance = (maps[:, 1:] - maps[:, :-1]).abs().sum(-1) / 2
    followed = spoken[:, 1:] & ~single[:, 1:]
    entropy, change = share[spoken & ~single], distance[followed]
    return AttentionStatistics(
        float(entropy.mean()) if len(entropy) else 0.0,
        float(change.mean()) if len(change) else math.nan,
        int(spoken.sum()),
    )


def pool(parts: Sequence[AttentionStatistics]) -> AttentionStatistics:
    """Put the statistics of several batches together."""
    words = sum(part.words for part in parts)
    entropy = sum(part.entropy * part.words for part in parts) / max(words, 1)
    change = sum(part.change * part.words for part in parts) / max(words, 1)
    return AttentionStatistics(entropy, change, words)


def collapse(statistics: AttentionStatistics) -> str | None:
    """Say how attention has collapsed, or None if it has not."""
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
