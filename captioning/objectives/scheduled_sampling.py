"""Scheduled sampling (Bengio et al. 2015): part of the input words are the model's own.

Which words are replaced is drawn from the model's distribution under teacher forcing, in a first pass without
gradient (the parallel form of Mihaylova and Martins 2019), so that the second pass keeps its speed.
"""

import torch
from torch import Tensor

from captioning.data.dataset import Batch
from captioning.models.base import CaptionModel, real_steps
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.vocabulary import END, PAD, START


class ScheduledSampling:
    """Cross-entropy whose inputs are mixed with the model's own words.

    Args:
        share: probability that an input word is replaced; START never is.
        cross_entropy: what is computed on the mixed inputs and the true targets.
    """

    def __init__(self, *, share: float, cross_entropy: CrossEntropy) -> None:
        self.share, self.cross_entropy = share, cross_entropy

    def __call__(self, model: CaptionModel, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss."""
        inputs = self.mix(model, batch)
        return self.cross_entropy.of_output(model, batch, model(batch.features, inputs, batch.mask))

    @torch.no_grad()
    def mix(self, model: CaptionModel, batch: Batch) -> Tensor:
        """Replace a share of the input words (B, T) by words drawn from the model."""
        inputs = batch.tokens[:, :-1].clone()
        replaced = (torch.rand(inputs.shape, device=inputs.device) < self.share) & real_steps(inputs)
        replaced[:, 0] = False
        if not replaced.any():
            return inputs
        said = replaced[:, 1:]  # step t's word is drawn from what the model says at step t - 1
        output = model(batch.features, inputs, batch.mask)
        logits = model.head(output.hidden[:, :-1][said]).float()
        never = torch.tensor([PAD, START, END], device=logits.device)  # an END inside would cut the caption
        logits = logits.index_fill(-1, never, -torch.inf)
        inputs[:, 1:][said] = torch.multinomial(logits.softmax(-1), 1).squeeze(-1)
        return inputs
