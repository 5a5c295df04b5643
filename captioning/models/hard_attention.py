"""Hard attention (Xu et al. 2015, section 4.1): the decoder sees one sampled region at a time.

    s_t ~ Multinoulli(alpha_t),   context_t = a_{s_t}

In training the region is sampled, except that a batch uses the expected context with probability
`expectation_share`. No gradient of the words' likelihood reaches alpha: the attention learns from the
log-probability of its samples and from its entropy, which come out as extras for the objective `Reinforce`.
What the decoder sees at test time is a module of its own; the authors' code defaults to the expected context,
and the paper does not say which one its table used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.models.attention import AdditiveAttention, AttentionOutput, Regions, weighted_sum


class HardRegions(NamedTuple):
    """`Regions`, and whether this batch uses expectations: (B,) bool, the same in all rows."""

    values: Tensor
    keys: Tensor
    mask: Tensor | None
    expected: Tensor


class Expectation(nn.Module):
    """All regions by their probability, as in soft attention."""

    def forward(self, weights: Tensor) -> Tensor:
        """Return the probabilities (B, R) themselves."""
        return weights


class MostLikely(nn.Module):
    """The most probable region alone."""

    def forward(self, weights: Tensor) -> Tensor:
        """Map probabilities (B, R) to one-hot rows (B, R)."""
        return nn.functional.one_hot(weights.argmax(-1), weights.shape[-1]).to(weights.dtype)


class SampledRegion(nn.Module):
    """One region sampled from the distribution."""

    def forward(self, weights: Tensor) -> Tensor:
        """Map probabilities (B, R) to one-hot rows (B, R)."""
        index = torch.multinomial(weights, 1).squeeze(-1)  # (B,)
        return nn.functional.one_hot(index, weights.shape[-1]).to(weights.dtype)


class HardAttention(nn.Module):
    """Additive attention whose context is one region.

    Args:
        value_dim: D.
        query_dim: H.
        attention_dim: A.
        deep_keys: see `AdditiveAttention`.
        expectation_share: probability that a training batch uses expectations; 0.5 in the authors' code.
        at_test: what is seen in evaluation mode: `Expectation`, `MostLikely` or `SampledRegion`.
    """

    samples_regions = True

    def __init__(
        self,
        *,
        value_dim: int,
        query_dim: int,
        attention_dim: int,
        deep_keys: bool,
        expectation_share: float,
        at_test: nn.Module,
    ) -> None:
        super().__init__()
        self.scorer = AdditiveAttention(
            value_dim=value_dim, query_dim=query_dim, attention_dim=attention_dim, deep_keys=deep_keys
        )
        self.expectation_share = expectation_share
        self.sample, self.at_test = SampledRegion(), at_test

    @contextmanager
    def expected(self) -> Iterator[None]:
        """Use expectations in every training batch; as many random numbers are drawn as without."""
        share, self.expectation_share = self.expectation_share, 1.0
        try:
            yield
        finally:
            self.expectation_share = share

    def prepare(self, values: Tensor, mask: Tensor | None) -> HardRegions:
        """Compute the keys of regions (B, R, D), and decide whether this batch uses expectations."""
        expected = torch.rand((), device=values.device) < self.expectation_share
        return HardRegions(values, self.scorer.key(values), mask, expected.expand(len(values)))

    def forward(self, query: Tensor, regions: HardRegions) -> AttentionOutput:
        """Attend with queries (B, H); extras in nats: `location_log_prob` (0 for expectations), `entropy`."""
        weights = self.scorer.weigh(query, Regions(*regions[:3]))  # (B, R)
        entropy = torch.special.entr(weights.clamp(min=1e-20)).sum(-1)  # (B,)
        if not self.training:
            context = weighted_sum(self.at_test(weights), regions.values)  # (B, D)
            return AttentionOutput(context, weights, {"location_log_prob": 0 * entropy, "entropy": entropy})
        # Sampled even where expectations are used: random numbers then do not depend on that decision.
        location = self.sample(weights.detach())  # (B, R)
        log_prob = (weights.clamp(min=1e-20).log() * location).sum(-1).masked_fill(regions.expected, 0.0)
        visible = torch.where(regions.expected[:, None], weights.detach(), location)  # (B, R)
        context = weighted_sum(visible, regions.values)  # (B, D)
        return AttentionOutput(context, weights, {"location_log_prob": log_prob, "entropy": entropy})
