"""Learning where to look by REINFORCE (Xu et al. 2015, equations 10 to 13).

Where the words t of captions b were said after looks at locations s_bt that the model drew, the bound's
gradient has a second term for the attention:

    loss = mean_b sum_t [ n_bt + lambda_r (r_bt - baseline_bt)' log alpha_bt(s_bt) - lambda_e H(alpha_bt) ]

n_bt is a word's negative log-likelihood, the prime a stopped gradient, and r_bt the cost that a look answers
for: `caption`, all words' (the bound); `word`, their mean (the authors' code); `to_go`, this word's and the
later ones' (the bound too, with less variance); `own`, this word's alone (the least variance; biased, as what
a look does to later words is left out). A look whose cost is above the baseline loses probability.

The authors' baseline is a moving `average` of the cost. How hard a caption is then stays in every advantage,
and on Flickr8k drowned what the draw had done: the attention never left the uniform distribution. `expected`
is the same words' cost under the expected context with the same dropout, plus what a draw costs on average
over the batch: it knows the caption and, but for its share in that average, not the draw. That share biases
the gradient by the order of 1/B, B being the captions of a batch.

The doubly stochastic term is left out: whether it reaches the attention in the authors' code is unclear.
Batches that saw expectations have no draws to learn from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from captioning.data.dataset import Batch
from captioning.errors import InputError
from captioning.models.base import CaptionModel, Output
from captioning.models.hard_attention import seeing_expectations
from captioning.objectives.cross_entropy import score_words
from captioning.vocabulary import PAD

REWARDS = ("caption", "word", "to_go", "own")
BASELINES = ("average", "expected")


class HardAttentionObjective:
    """Cross-entropy, the attention's policy gradient and its entropy.

    Args:
        reward_weight: lambda_r; 1 with `caption` or `to_go` rewards is the bound's own gradient. The authors'
            code says 0.1 on `word` rewards, not divided by the batch as the likelihood is: 6.4 for one of 64.
        entropy_weight: lambda_e; 0.002 there, 0.128 by the same count.
        reward: `caption`, `word`, `to_go` or `own`.
        baseline: `average` or `expected`.
        baseline_decay: of the moving average; 0.9 in the paper. 1 keeps the baseline at 0.
    """

    def __init__(
        self,
        *,
        reward_weight: float,
        entropy_weight: float,
        reward: str,
        baseline: str,
        baseline_decay: float = 0.9,
    ) -> None:
        if reward not in REWARDS or baseline not in BASELINES:
            raise InputError(
                f"objective.reward={reward} and objective.baseline={baseline}: needed are one of "
                f"{', '.join(REWARDS)} and one of {', '.join(BASELINES)}"
            )
        self.reward_weight, self.entropy_weight = reward_weight, entropy_weight
        self.reward, self.baseline, self.baseline_decay = reward, baseline, baseline_decay
        self.average: float | None = 0.0 if baseline_decay == 1 else None

    def __call__(self, model: CaptionModel, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss.

        Raises:
            InputError: the model's attention does not draw locations.
        """
        real = batch.tokens[:, 1:] != PAD
        random = _generator_of(batch.tokens.device).get_rng_state()
        nll, output = _word_nll(model, batch)
        if "location_log_prob" not in output.extras:
            raise InputError("the hard-attention objective needs model=show_attend_tell_hard")
        cost = self._cost(nll.detach(), real)
        if self.baseline == "average":
            advantage = cost - self._moved_average(cost, real)
        elif not output.extras["location_log_prob"].any():
            advantage = torch.zeros_like(cost)  # expectations were seen: there is no draw to judge
        else:
            with torch.no_grad(), _same_random(random, batch.tokens.device), seeing_expectations(model):
                advantage = cost - self._cost(_word_nll(model, batch)[0], real)
            advantage = advantage - (advantage * real).sum() / real.sum()
        advantage = advantage * real
        policy = (advantage * output.extras["location_log_prob"]).sum(1).mean()
        entropy = output.extras["entropy"].sum(1).mean()
        loss = nll.sum(1).mean() + self.reward_weight * policy - self.entropy_weight * entropy
        tokens = real.sum()
        return {
            "loss": loss,
            "nll": (nll.sum() / tokens).detach(),
            "attention_entropy": (output.extras["entropy"].sum() / tokens).detach(),
            "tokens": tokens.to(torch.float32),
        }

    def state(self) -> dict[str, float | None]:
        """Give the moving average, for a checkpoint."""
        return {"baseline": self.average}

    def restore(self, state: dict[str, float | None]) -> None:
        """Take up the moving average of a checkpoint."""
        self.average = state["baseline"]

    def _cost(self, nll: Tensor, real: Tensor) -> Tensor:
        """Give what each look is held to account for, from words' costs (B, T), padding 0."""
        if self.reward == "own":
            return nll
        if self.reward == "to_go":
            return nll.flip(1).cumsum(1).flip(1)
        total = nll.sum(1, keepdim=True)
        return (total / real.sum(1, keepdim=True) if self.reward == "word" else total).expand_as(nll)

    def _moved_average(self, cost: Tensor, real: Tensor) -> float:
        """Give the average before this batch, and move it."""
        mean = float(
            (cost * real).sum() / real.sum() if self.reward in ("to_go", "own") else cost[:, 0].mean()
        )
        before = mean if self.average is None else self.average
        self.average = self.baseline_decay * before + (1 - self.baseline_decay) * mean
        return before


def _word_nll(model: CaptionModel, batch: Batch) -> tuple[Tensor, Output]:
    """Give every word's negative log-likelihood (B, T), padding 0, and the model's output."""
    output = model(batch.features, batch.tokens[:, :-1], batch.mask)
    logits, targets, real = score_words(model, batch, output)
    words = functional.cross_entropy(logits, targets, reduction="none")
    return torch.zeros_like(real, dtype=torch.float32).masked_scatter(real, words), output


def _generator_of(device: torch.device) -> Any:
    """Give the part of torch that holds the generator a device draws from."""
    return torch if device.type == "cpu" else torch.get_device_module(device)


@contextmanager
def _same_random(state: Tensor, device: torch.device) -> Iterator[None]:
    """Draw from a generator's earlier state, and go on afterwards as if nothing had been drawn."""
    generator = _generator_of(device)
    now = generator.get_rng_state()
    generator.set_rng_state(state)
    try:
        yield
    finally:
        generator.set_rng_state(now)
