"""Doubly stochastic attention (Xu et al. 2015, section 4.2.1): each region gets about equal attention.

    loss = mean over captions of [sum_t NLL_t + lambda * sum_i (target - sum_t alpha_ti)^2]

The sums run over real steps and real regions only. The paper's target is 1, which no caption of fewer words
than regions can reach; `target: length` takes C/L instead, with C words and L regions, which the weights can
meet exactly.
"""

import torch
from torch import Tensor

from captioning.data.dataset import Batch
from captioning.errors import InputError
from captioning.models.base import CaptionModel, Output, real_steps
from captioning.objectives.base import Objective, Terms, check_range, teacher_force
from captioning.objectives.cross_entropy import CrossEntropy


class DoublyStochastic(Objective):
    """Cross-entropy plus the coverage term.

    Args:
        weight: lambda; 1 in the paper.
        target: `one`, or `length` for C/L.
        cross_entropy: the first term; its normalisation is that of the coverage term too, so that lambda
            weighs sums over captions, as in the paper.

    Raises:
        InputError: another target, or a negative weight.
    """

    needs_attention = True

    def __init__(self, *, weight: float, target: str, cross_entropy: CrossEntropy) -> None:
        if target not in ("one", "length"):
            raise InputError(f"objective.target is {target!r}; it is one or length")
        check_range("weight", weight, 0)
        self.weight, self.target, self.cross_entropy = weight, target, cross_entropy

    def __call__(self, model: CaptionModel, batch: Batch) -> Terms:
        """Compute the loss; logs `coverage`, the term before its weight, as a mean over captions."""
        return self.of_output(model, batch, teacher_force(model, batch, self.cross_entropy.inputs(batch)))

    def of_output(self, model: CaptionModel, batch: Batch, output: Output) -> Terms:
        """Compute the loss from a model's output, for objectives that add a term to it."""
        terms = self.cross_entropy.of_output(model, batch, output)
        coverage = self.coverage(output, batch)
        num_captions = len(batch.tokens)
        scaled = self.cross_entropy.normalise(coverage * num_captions, terms.num_words, num_captions)
        return Terms(
            terms.loss + self.weight * scaled,
            terms.num_words,
            {**terms.logged, "coverage": coverage.detach()},
        )

    def coverage(self, output: Output, batch: Batch) -> Tensor:
        """Compute the mean over captions of sum_i (target - sum_t alpha_ti)^2."""
        assert output.attention is not None  # see `check`
        total = output.attention.sum(1)  # (B, R)
        mask = torch.ones_like(total, dtype=torch.bool) if batch.caption_mask is None else batch.caption_mask
        target = torch.ones_like(total)
        if self.target == "length":
            words = real_steps(batch.tokens[:, :-1]).sum(1)  # (B,)
            target = (words / mask.sum(1))[:, None].expand_as(total)
        return ((target - total) ** 2 * mask).sum(1).mean()
