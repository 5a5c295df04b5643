"""Scheduled sampling (Bengio et al. 2015): a growing share of the input words is sampled from the model.

The replacements are drawn from the model's distribution under teacher forcing, in a first pass without
gradient (the parallel form of Mihaylova and Martins 2019), so that the second pass runs over all words at
once.
"""

import torch
from torch import Tensor

from captioning.data.dataset import Batch
from captioning.errors import InputError
from captioning.models.base import CaptionModel, real_steps
from captioning.objectives.base import Objective, Terms, teacher_force
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.vocabulary import END, PAD, START


class ScheduledSampling(Objective):
    """Cross-entropy whose input words are mixed with sampled ones.

    Args:
        step: by how much the probability that an input word is replaced rises; START is never replaced.
        every: epochs between two rises; the first `every` epochs are teacher forcing.
        most: the largest probability.
        cross_entropy: what is computed on the mixed inputs and the true targets.

    Raises:
        InputError: probabilities outside 0 to 1, or no epochs between rises.
    """

    def __init__(self, *, step: float, every: int, most: float, cross_entropy: CrossEntropy) -> None:
        if not (0 <= step <= 1 and 0 <= most <= 1 and every >= 1):
            raise InputError(
                f"objective.step={step} and objective.most={most} are probabilities, objective.every={every} "
                "is a number of epochs"
            )
        self.step, self.every, self.most, self.cross_entropy = step, every, most, cross_entropy
        self.share = 0.0

    def begin_epoch(self, epoch: int) -> None:
        """Set the epoch's probability (Luo 2018: 0.05 more every 5 epochs, up to 0.25)."""
        self.share = min(self.step * (epoch // self.every), self.most)

    def __call__(self, model: CaptionModel, batch: Batch) -> Terms:
        inputs = self.mix(model, batch)
        return self.cross_entropy.of_output(model, batch, teacher_force(model, batch, inputs))

    @torch.no_grad()
    def mix(self, model: CaptionModel, batch: Batch) -> Tensor:
        """Return the input words (B, T), a share of them replaced by words drawn from the model."""
        inputs = self.cross_entropy.inputs(batch).clone()
        replaced = (torch.rand(inputs.shape, device=inputs.device) < self.share) & real_steps(inputs)
        replaced[:, 0] = False
        if not replaced.any():
            return inputs
        # The word at step t is drawn from the distribution at step t - 1.
        targets = replaced[:, 1:]  # (B, T-1)
        output = teacher_force(model, batch, inputs)
        logits = model.head(output.hidden[:, :-1][targets]).float()  # (words, V)
        # An END inside would cut the caption.
        excluded = torch.tensor([PAD, START, END], device=logits.device)
        logits = logits.index_fill(-1, excluded, -torch.inf)
        inputs[:, 1:][targets] = torch.multinomial(logits.softmax(-1), 1).squeeze(-1)
        return inputs
