"""Teacher-forced cross-entropy of the next word, over real words.

Padding enters neither the sum nor the denominator (the post divides by padded lengths, flaw S8). There are
two normalisations, because learning rates do not carry over from one to the other: `per_token` divides by
the number of words; `per_caption`, as in the post and in Show, Attend and Tell, by the number of captions.
"""

import torch
from torch import Tensor
from torch.nn import functional

from captioning.data.dataset import Batch
from captioning.errors import InputError
from captioning.models.base import CaptionModel, Output
from captioning.objectives.base import Objective, Terms, teacher_force
from captioning.vocabulary import END, PAD, UNKNOWN


class CrossEntropy(Objective):
    """Masked cross-entropy.

    Args:
        label_smoothing: share of the target spread over the vocabulary, 0 to 1.
        normalisation: `per_token` or `per_caption`.
        word_dropout: probability that an input word is replaced by the unknown one (Bowman et al. 2016), so
            that the model leans less on the words before and more on the picture.

    Raises:
        InputError: another normalisation, no share or no probability.
    """

    def __init__(
        self, *, label_smoothing: float = 0.0, normalisation: str = "per_token", word_dropout: float = 0.0
    ) -> None:
        if not 0 <= label_smoothing < 1:
            raise InputError(f"objective.label_smoothing is {label_smoothing}; it is a share below 1")
        if not 0 <= word_dropout < 1:
            raise InputError(f"objective.word_dropout is {word_dropout}; it is a probability below 1")
        if normalisation not in ("per_token", "per_caption"):
            raise InputError(f"objective.normalisation is {normalisation!r}; it is per_token or per_caption")
        self.label_smoothing, self.normalisation = label_smoothing, normalisation
        self.word_dropout = word_dropout

    def __call__(self, model: CaptionModel, batch: Batch) -> Terms:
        """Compute the loss; logs `nll` in nats per word, without smoothing."""
        return self.of_output(model, batch, teacher_force(model, batch, self.inputs(batch)))

    def inputs(self, batch: Batch) -> Tensor:
        """Return what the model reads, (B, T): START and all words but the last, some of them dropped."""
        inputs = batch.tokens[:, :-1]
        if self.word_dropout:
            dropped = (torch.rand(inputs.shape, device=inputs.device) < self.word_dropout) & (inputs > END)
            inputs = inputs.masked_fill(dropped, UNKNOWN)
        return inputs

    def of_output(self, model: CaptionModel, batch: Batch, output: Output) -> Terms:
        """Compute the loss from a model's output, for objectives that add a term to it."""
        logits, targets, real = score_words(model, batch, output)
        log_probs = functional.log_softmax(logits, dim=-1)  # (words, V)
        nll = functional.nll_loss(log_probs, targets)
        loss = nll
        if self.label_smoothing:
            loss = (1 - self.label_smoothing) * nll - self.label_smoothing * log_probs.mean(-1).mean()
        num_words = real.sum()
        loss = self.normalise(loss * num_words, num_words, len(real))
        return Terms(loss, num_words, {"nll": nll.detach()})

    def normalise(self, total: Tensor, num_words: Tensor, num_captions: int) -> Tensor:
        """Divide a sum over captions as this loss is divided, so that the two can be added."""
        return total / (num_words if self.normalisation == "per_token" else num_captions)


def score_words(model: CaptionModel, batch: Batch, output: Output) -> tuple[Tensor, Tensor, Tensor]:
    """Score the next words of a teacher-forced model.

    Returns:
        float32 logits (words, V) and target ids (words,) of the real words, and a mask of these (B, T).
    """
    targets = batch.tokens[:, 1:]
    real = targets != PAD
    # The head is the largest product of most models: it runs on real words only.
    return model.head(output.hidden[real]).float(), targets[real], real
