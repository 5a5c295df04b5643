"""Hard attention (Xu et al. 2015, section 4.1): the decoder sees one sampled location at a time.

In training a location s_t is drawn from alpha_t, except that with probability `expectation_share`, decided
once a batch, the expected context is used instead. No gradient of the words' likelihood flows into alpha: the
attention learns from the log-probability of its draws and its entropy, which come out as extras for the
objective `HardAttention`. What the decoder sees at test time is an object of its own; the authors' code
defaults to the expected context, and the paper does not say which one its table used.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.models.attention import AdditiveAttention, Regions, weighted_sum


class Look(NamedTuple):
    """What one look gave: context (B, D), the distribution (B, R) it came from, extras (B,)."""

    context: Tensor
    weights: Tensor
    extras: dict[str, Tensor]


class DrawnRegions(NamedTuple):
    """`Regions`, and whether this batch sees expectations (B,), the same for all its rows."""

    values: Tensor
    keys: Tensor
    mask: Tensor | None
    expected: Tensor


def expectation(weights: Tensor) -> Tensor:
    """See all regions by their probability, as soft attention does: (B, R) -> (B, R)."""
    return weights


def most_likely(weights: Tensor) -> Tensor:
    """See the most probable region only: (B, R) -> one-hot (B, R)."""
    return nn.functional.one_hot(weights.argmax(-1), weights.shape[-1]).to(weights.dtype)


def drawn(weights: Tensor) -> Tensor:
    """See one region drawn from the distribution: (B, R) -> one-hot (B, R)."""
    index = torch.multinomial(weights, 1).squeeze(-1)
    return nn.functional.one_hot(index, weights.shape[-1]).to(weights.dtype)


CONTEXTS = {"expectation": expectation, "most_likely": most_likely, "drawn": drawn}


def see_at_test(model: nn.Module, context: str) -> None:
    """Choose what a model with hard attention sees in evaluation mode, whatever it was built with.

    Args:
        model: holds a `HardAttention` somewhere.
        context: `expectation`, `most_likely` or `drawn`.

    Raises:
        InputError: another name, or no hard attention.
    """
    parts = [part for part in model.modules() if isinstance(part, HardAttention)]
    if context not in CONTEXTS or not parts:
        found = "no hard attention in the model" if not parts else repr(context)
        raise InputError(
            f"hard_context needs a hard-attention model and one of {', '.join(CONTEXTS)}; {found}"
        )
    for part in parts:
        part.at_test = CONTEXTS[context]


@contextmanager
def seeing_expectations(model: nn.Module) -> Iterator[None]:
    """Let every batch see expectations for as long as this lasts, and draw as many random numbers as ever."""
    parts = [part for part in model.modules() if isinstance(part, HardAttention)]
    shares = [part.expectation_share for part in parts]
    try:
        for part in parts:
            part.expectation_share = 1.0
        yield
    finally:
        for part, share in zip(parts, shares, strict=True):
            part.expectation_share = share


class SoftAttention(nn.Module):
    """Soft attention behind the same interface: the expectation, with gradient, always.

    Args:
        value_dim: D.
        query_dim: H.
        attention_dim: A.
        deep_keys: see `AdditiveAttention`.
    """

    def __init__(self, *, value_dim: int, query_dim: int, attention_dim: int, deep_keys: bool) -> None:
        super().__init__()
        self.scorer = AdditiveAttention(
            value_dim=value_dim, query_dim=query_dim, attention_dim=attention_dim, deep_keys=deep_keys
        )

    def prepare(self, values: Tensor, mask: Tensor | None) -> Regions:
        """Project the regions once an image."""
        return self.scorer.prepare(values, mask)

    def forward(self, query: Tensor, regions: Regions) -> Look:
        """Look with queries (B, H)."""
        context, weights = self.scorer(query, regions)
        return Look(context, weights, {})


class HardAttention(nn.Module):
    """Attention that sees one location.

    Args:
        value_dim: D.
        query_dim: H.
        attention_dim: A.
        deep_keys: see `AdditiveAttention`.
        expectation_share: probability that a training batch sees expectations instead of draws; 0.5 in the
            code.
        at_test: what is seen in evaluation mode: `expectation`, `most_likely` or `drawn`.
    """

    def __init__(
        self,
        *,
        value_dim: int,
        query_dim: int,
        attention_dim: int,
        deep_keys: bool,
        expectation_share: float,
        at_test: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.scorer = AdditiveAttention(
            value_dim=value_dim, query_dim=query_dim, attention_dim=attention_dim, deep_keys=deep_keys
        )
        self.expectation_share, self.at_test = expectation_share, at_test

    def prepare(self, values: Tensor, mask: Tensor | None) -> DrawnRegions:
        """Project the regions once an image, and decide once a batch whether it sees expectations."""
        expected = torch.rand((), device=values.device) < self.expectation_share
        return DrawnRegions(values, self.scorer.key(values), mask, expected.expand(len(values)))

    def forward(self, query: Tensor, regions: DrawnRegions) -> Look:
        """Look with queries (B, H); extras in nats: `location_log_prob` (0 for expectations), `entropy`."""
        weights = self.scorer.weigh(query, Regions(*regions[:3]))  # (B, R)
        entropy = torch.special.entr(weights.clamp(min=1e-20)).sum(-1)
        if not self.training:
            seen = self.at_test(weights)
            return Look(
                weighted_sum(seen, regions.values),
                weights,
                {"location_log_prob": 0 * entropy, "entropy": entropy},
            )
        place = drawn(weights.detach())
        log_prob = (weights.clamp(min=1e-20).log() * place).sum(-1).masked_fill(regions.expected, 0.0)
        seen = torch.where(regions.expected[:, None], weights.detach(), place)
        return Look(
            weighted_sum(seen, regions.values), weights, {"location_log_prob": log_prob, "entropy": entropy}
        )
