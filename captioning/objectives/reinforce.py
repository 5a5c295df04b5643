"""REINFORCE for hard attention (Xu et al. 2015, equations 10 to 13).

With locations s_bt that the model sampled for the words t of captions b, the gradient of the paper's lower
bound has a second term, for the attention:

    loss = mean_b sum_t [ n_bt + lambda_r (r_bt - baseline_bt)' log alpha_bt(s_bt) - lambda_e H(alpha_bt) ]

n_bt is a word's negative log-likelihood, and the prime a stopped gradient. r_bt is the cost attributed to a
location: `caption`, the sum over all words (the bound); `word`, their mean (the authors' code); `to_go`,
the sum over this word and the later ones (the bound too, with less variance); `own`, this word alone (the
least variance, but biased: the effect of a location on later words is left out). A location whose cost is
above the baseline loses probability.

The authors' baseline is a moving `average` of the cost. It leaves the difficulty of each caption in the
advantage: in one epoch on Flickr8k (seed 0) dev loss was 0.03 to 0.12 nats higher with it. The attention
left the uniform distribution with `own` and a small weight of the entropy, under both baselines; with `word`
it hardly did (notebooks/RESULTS.md, "Show, Attend and Tell").

`expected` is the cost of the same words with expected attention and the same dropout, plus the batch's mean
extra cost of sampling. It depends on the caption but, except through that mean, not on the sample; the mean
biases the gradient by the order of 1/B, with B captions in a batch.

The doubly stochastic term is left out: whether it reaches the attention in the authors' code is unclear.
Batches with expected attention have no samples to learn from.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from captioning.data.dataset import Batch
from captioning.errors import InputError
from captioning.models.base import CaptionModel, Output
from captioning.objectives.base import Objective, Terms, TrainingData, check_range, teacher_force
from captioning.objectives.cross_entropy import CrossEntropy, score_words
from captioning.vocabulary import PAD

REWARDS = ("caption", "word", "to_go", "own")
BASELINES = ("average", "expected")


class Reinforce(Objective):
    """Cross-entropy, the policy gradient of the attention, and its entropy.

    Args:
        reward_weight: lambda_r; 1 with `caption` or `to_go` is the gradient of the bound itself. The authors'
            code has 0.1 with `word`, not divided by the batch as the likelihood is: 6.4 here for their 64.
        entropy_weight: lambda_e; 0.002 there, 0.128 by the same count.
        reward: the cost attributed to a location: `caption`, `word`, `to_go` or `own`.
        baseline: `average` or `expected`.
        baseline_decay: of the moving average; 0.9 in the paper. 1 keeps the baseline at 0.
        normalisation: `per_caption`, the loss above, or `per_token`: divided by words instead of captions.

    Raises:
        InputError: another reward, baseline or normalisation, or a number out of its range.
    """

    def __init__(
        self,
        *,
        reward_weight: float,
        entropy_weight: float,
        reward: str,
        baseline: str,
        baseline_decay: float = 0.9,
        normalisation: str = "per_caption",
    ) -> None:
        if reward not in REWARDS or baseline not in BASELINES:
            raise InputError(
                f"objective.reward={reward} and objective.baseline={baseline}: needed are one of "
                f"{', '.join(REWARDS)} and one of {', '.join(BASELINES)}"
            )
        check_range("reward_weight", reward_weight, 0)
        check_range("entropy_weight", entropy_weight, 0)
        check_range("baseline_decay", baseline_decay, 0, 1)
        self.reward_weight, self.entropy_weight = reward_weight, entropy_weight
        self.reward, self.baseline, self.baseline_decay = reward, baseline, baseline_decay
        self.cross_entropy = CrossEntropy(normalisation=normalisation)
        self.average: float | None = 0.0 if baseline_decay == 1 else None

    def check(self, model: CaptionModel, data: TrainingData) -> None:
        """Refuse a model whose attention does not sample locations.

        Raises:
            InputError: there is nothing for REINFORCE to learn from.
        """
        if not model.samples_attention:
            raise InputError(
                f"objective=reinforce trains sampled attention, and this {type(model).__name__} has none; "
                "choose model=show_attend_tell_hard, or another objective"
            )

    def __call__(self, model: CaptionModel, batch: Batch) -> Terms:
        """Compute the loss; logs `nll` in nats per word and `attention_entropy` in nats per word."""
        real = batch.tokens[:, 1:] != PAD
        random_state = _generator_of(batch.tokens.device).get_rng_state()
        nll, output = _word_nll(model, batch)
        location_log_prob, entropy = output.extras["location_log_prob"], output.extras["entropy"]  # (B, T)
        cost = self._cost(nll.detach(), real)
        if self.baseline == "average":
            advantage = cost - self._update_average(cost, real)
        elif not location_log_prob.any():
            # This batch used expected attention: no location was sampled.
            advantage = torch.zeros_like(cost)
        else:
            with (
                torch.no_grad(),
                _random_state(random_state, batch.tokens.device),
                model.expected_attention(),
            ):
                advantage = cost - self._cost(_word_nll(model, batch)[0], real)
            advantage = advantage - (advantage * real).sum() / real.sum()
        advantage = advantage * real  # (B, T)
        policy = (advantage * location_log_prob).sum()
        loss = nll.sum() + self.reward_weight * policy - self.entropy_weight * entropy.sum()
        num_words = real.sum()
        return Terms(
            self.cross_entropy.normalise(loss, num_words, len(real)),
            num_words,
            {
                "nll": (nll.sum() / num_words).detach(),
                "attention_entropy": (entropy.sum() / num_words).detach(),
            },
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the moving average."""
        return {"average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the moving average."""
        self.average = state["average"]

    def _cost(self, nll: Tensor, real: Tensor) -> Tensor:
        """Attribute a cost to each location (B, T), from the costs of the words (B, T), 0 at padding."""
        if self.reward == "own":
            return nll
        if self.reward == "to_go":
            return nll.flip(1).cumsum(1).flip(1)
        total = nll.sum(1, keepdim=True)  # (B, 1)
        return (total / real.sum(1, keepdim=True) if self.reward == "word" else total).expand_as(nll)

    def _update_average(self, cost: Tensor, real: Tensor) -> float:
        """Move the average by this batch's mean cost, and return the average before."""
        # The same cost stands at every word of a caption, unless it is a word's alone.
        mean = float(
            (cost * real).sum() / real.sum() if self.reward in ("to_go", "own") else cost[:, 0].mean()
        )
        before = mean if self.average is None else self.average
        self.average = self.baseline_decay * before + (1 - self.baseline_decay) * mean
        return before


def _word_nll(model: CaptionModel, batch: Batch) -> tuple[Tensor, Output]:
    """Return the negative log-likelihood of every word (B, T), 0 at padding, and the model's output."""
    output = teacher_force(model, batch, batch.tokens[:, :-1])
    logits, targets, real = score_words(model, batch, output)
    words = functional.cross_entropy(logits, targets, reduction="none")  # (words,)
    return torch.zeros_like(real, dtype=torch.float32).masked_scatter(real, words), output


def _generator_of(device: torch.device) -> Any:
    """Return the module with the functions of the device's random generator, such as `get_rng_state`."""
    return torch if device.type == "cpu" else torch.get_device_module(device)


@contextmanager
def _random_state(state: Tensor, device: torch.device) -> Iterator[None]:
    """Draw from an earlier state of the generator, and go on afterwards as if nothing had been drawn."""
    generator = _generator_of(device)
    before = generator.get_rng_state()
    generator.set_rng_state(state)
    try:
        yield
    finally:
        generator.set_rng_state(before)
