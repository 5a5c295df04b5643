"""Soft attention over regions.

Additive attention is Bahdanau, Cho and Bengio (2015), equations 5 and 6, with biases as in Keydana (2018):

    e_i = v · tanh(W_k a_i + W_q h) + b        alpha = softmax(e)        context = sum_i alpha_i a_i

`SoftAttention` is the same behind the interface that it shares with `HardAttention`: `prepare` once per
image, then a call per word; `samples_regions` and `expected` describe how it is trained.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

# On a CPU, decoding scores this many rows at once. Larger blocks go back to the system and fault in again at
# every word; in beam search that cost more than the arithmetic.
ROWS_AT_ONCE = 64


class Regions(NamedTuple):
    """What attention reads again for every word: values (B, R, D), keys (B, R, A) and mask (B, R) or None."""

    values: Tensor
    keys: Tensor
    mask: Tensor | None


class AttentionOutput(NamedTuple):
    """The result of attention: context (B, D), the distribution (B, R) it came from, named extras (B,)."""

    context: Tensor
    weights: Tensor
    extras: dict[str, Tensor]


class AdditiveAttention(nn.Module):
    """Scores regions with a one-layer perceptron of region and query.

    Args:
        value_dim: D, size of a region.
        query_dim: H, size of the query, which is the decoder's hidden vector.
        attention_dim: A, size of the perceptron's hidden layer.
        deep_keys: whether the keys have one more layer, with tanh (`n_layers_att=2` in Xu et al.'s COCO
            settings).
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
        """Compute the keys of regions (B, R, D), once per image."""
        return Regions(values, self.key(values), mask)

    def weigh(self, query: Tensor, regions: Regions) -> Tensor:
        """Compute weights (B, R) for queries (B, H); they sum to one over real regions, zero elsewhere."""
        return masked_softmax(self.energies(self.query(query), regions.keys), regions.mask)

    def energies(self, query: Tensor, keys: Tensor) -> Tensor:
        """Score keys (B, R, A) for projected queries (B, A): (B, R)."""
        # A backward pass would need all rows at once; an exported graph takes any number of them.
        keeps_all = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if not keeps_all and keys.device.type == "cpu" and len(keys) > ROWS_AT_ONCE:
            parts = zip(query.split(ROWS_AT_ONCE), keys.split(ROWS_AT_ONCE), strict=True)
            return torch.cat([self.energies(*part) for part in parts])
        # In place, because (B, R, A) is the largest tensor of a step.
        return self.score((keys + query[:, None]).tanh_()).squeeze(-1)  # (B, R)

    def forward(self, query: Tensor, regions: Regions) -> tuple[Tensor, Tensor]:
        """Return context (B, D) and weights (B, R) for queries (B, H)."""
        weights = self.weigh(query, regions)
        return weighted_sum(weights, regions.values), weights


class SoftAttention(nn.Module):
    """Additive attention whose context is the expectation, with gradient.

    Args:
        value_dim: D.
        query_dim: H.
        attention_dim: A.
        deep_keys: see `AdditiveAttention`.
    """

    samples_regions = False

    def __init__(self, *, value_dim: int, query_dim: int, attention_dim: int, deep_keys: bool) -> None:
        super().__init__()
        self.scorer = AdditiveAttention(
            value_dim=value_dim, query_dim=query_dim, attention_dim=attention_dim, deep_keys=deep_keys
        )

    def expected(self) -> AbstractContextManager[None]:
        """Return a context that changes nothing, see `HardAttention.expected`."""
        return nullcontext()

    def prepare(self, values: Tensor, mask: Tensor | None) -> Regions:
        """Compute the keys of regions (B, R, D), once per image."""
        return self.scorer.prepare(values, mask)

    def forward(self, query: Tensor, regions: Regions) -> AttentionOutput:
        """Attend with queries (B, H); there are no extras."""
        context, weights = self.scorer(query, regions)
        return AttentionOutput(context, weights, {})


def masked_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the softmax of scores (B, R) over the real regions, in float32."""
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.float().softmax(-1)


def weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """Sum values (B, R, D) with weights (B, R): (B, D)."""
    return torch.bmm(weights.to(values.dtype)[:, None], values).squeeze(1)
