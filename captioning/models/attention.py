"""Attention over regions.

Additive attention is Bahdanau, Cho and Bengio (2015), equations 5 and 6, with biases as in the seed post:

    e_i = v · tanh(W_k a_i + W_q h) + b        alpha = softmax(e)        context = sum_i alpha_i a_i
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Regions(NamedTuple):
    """What attention reads again for every word: values (B, R, D), keys (B, R, A) and mask (B, R) or None."""

    values: Tensor
    keys: Tensor
    mask: Tensor | None


class AdditiveAttention(nn.Module):
    """Scores regions by a one-layer perceptron of region and query.

    Args:
        value_dim: D, size of a region.
        query_dim: size of the query, the decoder's hidden vector.
        attention_dim: A, size of the common space.
        deep_keys: one more tanh layer over the regions (Xu et al.'s COCO setting, `n_layers_att=2`).
    """

    def __init__(
        self, *, value_dim: int, query_dim: int, attention_dim: int, deep_keys: bool = False
    ) -> None:
        super().__init__()
        self.key: nn.Module = nn.Linear(value_dim, attention_dim)
        if deep_keys:
            self.key = nn.Sequential(self.key, nn.Linear(attention_dim, attention_dim), nn.Tanh())
        self.query = nn.Linear(query_dim, attention_dim)
        self.score = nn.Linear(attention_dim, 1)

    def prepare(self, values: Tensor, mask: Tensor | None) -> Regions:
        """Project the regions once an image."""
        return Regions(values, self.key(values), mask)

    def weigh(self, query: Tensor, regions: Regions) -> Tensor:
        """Weigh the regions for queries (B, H): (B, R), one in sum over real regions and zero elsewhere."""
        return masked_softmax(self.energies(self.query(query), regions.keys), regions.mask)

    def energies(self, query: Tensor, keys: Tensor) -> Tensor:
        """Score keys (B, R, A) for projected queries (B, A): (B, R)."""
        return self.score((keys + query[:, None]).tanh_()).squeeze(-1)  # (B, R, A) is the largest tensor

    def forward(self, query: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
        """Look at the regions: context (B, D) and weights (B, R) for queries (B, H)."""
        weights = self.weigh(query, regions)
        return weighted_sum(weights, regions.values), weights


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the real regions, in float32: (B, R) -> (B, R)."""
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.float().softmax(-1)


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Average of the values (B, R, D) under the weights (B, R): (B, D)."""
    return torch.bmm(weights.to(values.dtype)[:, None], values).squeeze(1)
