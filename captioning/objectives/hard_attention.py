"""Learning where to look by REINFORCE (Xu et al. 2015, equations 10 to 13).

For a caption b with locations s drawn by the model, the bound's gradient has a second term for the attention:

    loss = mean_b [ n_b + lambda_r (n_b - baseline)' sum_t log alpha_t(s_t) - lambda_e sum_t H(alpha_t) ]

The doubly stochastic term is left out: whether it reaches the attention in the authors' code is unclear.
n_b is the caption's negative log-likelihood, the prime a stopped gradient, the baseline a moving average of
n. A location after which the words were unlikely (n_b above the baseline) loses probability. `reward: word`
takes the mean over words instead of the sum, as the authors' code does. Batches that saw expectations have no
draws to learn from.
"""

import torch
from torch import Tensor
from torch.nn import functional

from captioning.data.dataset import Batch
from captioning.errors import InputError
from captioning.models.base import CaptionModel
from captioning.vocabulary import PAD


class HardAttentionObjective:
    """Cross-entropy, the attention's policy gradient and its entropy.

    Args:
        reward_weight: lambda_r; 1 with `caption` rewards is the bound's own gradient. The authors' code says
            0.1 on `word` rewards, not divided by the batch as the likelihood is: 6.4 for a batch of 64.
        entropy_weight: lambda_e; 0.002 there, 0.128 by the same count.
        baseline_decay: of the moving average; 0.9 in the paper. 1 keeps the baseline at 0.
        reward: `caption` for the sum of log-likelihoods (the bound), `word` for their mean.
    """

    def __init__(
        self, *, reward_weight: float, entropy_weight: float, baseline_decay: float, reward: str
    ) -> None:
        if reward not in ("caption", "word"):
            raise InputError(f"objective.reward is {reward!r}; it is caption or word")
        self.reward_weight, self.entropy_weight = reward_weight, entropy_weight
        self.baseline_decay, self.reward = baseline_decay, reward
        self.baseline: float | None = 0.0 if baseline_decay == 1 else None

    def __call__(self, model: CaptionModel, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss.

        Raises:
            InputError: the model's attention does not draw locations.
        """
        output = model(batch.features, batch.tokens[:, :-1], batch.mask)
        if "location_log_prob" not in output.extras:
            raise InputError("the hard-attention objective needs model=show_attend_tell_hard")
        targets = batch.tokens[:, 1:]
        real = targets != PAD
        nll = torch.zeros_like(real, dtype=torch.float32)
        words = functional.cross_entropy(
            model.head(output.hidden[real]).float(), targets[real], reduction="none"
        )
        nll = nll.masked_scatter(real, words)  # (B, T)
        cost = nll.sum(1) if self.reward == "caption" else nll.sum(1) / real.sum(1)  # (B,)
        advantage = (cost - self._baseline(cost)).detach()
        policy = (advantage * output.extras["location_log_prob"].sum(1)).mean()
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
        return {"baseline": self.baseline}

    def restore(self, state: dict[str, float | None]) -> None:
        """Take up the moving average of a checkpoint."""
        self.baseline = state["baseline"]

    def _baseline(self, cost: Tensor) -> float:
        """Give the average before this batch, and move it."""
        mean = float(cost.detach().mean())
        before = mean if self.baseline is None else self.baseline
        self.baseline = self.baseline_decay * before + (1 - self.baseline_decay) * mean
        return before
