"""Teacher-forced cross-entropy over real words.

Padding enters neither the sum nor the denominator (the seed divided by padded lengths, flaw S8). Two
normalisations, because learning rates don't carry over between them: `per_token` divides by the number of
words, `per_caption`, as the post's and Show-Attend-Tell's gradients, by the number of captions.
"""

import torch
from torch import Tensor
from torch.nn import functional

from captioning.data.dataset import Batch
from captioning.errors import InputError
from captioning.models.base import CaptionModel, Output
from captioning.vocabulary import PAD


class CrossEntropy:
    """Masked cross-entropy of the next word.

    Args:
        label_smoothing: share of the target spread over the vocabulary, 0 to 1.
        normalisation: `per_token` or `per_caption`.
    """

    def __init__(self, *, label_smoothing: float = 0.0, normalisation: str = "per_token") -> None:
        if normalisation not in ("per_token", "per_caption"):
            raise InputError(f"objective.normalisation is {normalisation!r}; it is per_token or per_caption")
        self.label_smoothing, self.normalisation = label_smoothing, normalisation

    def __call__(self, model: CaptionModel, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss; `nll` is nats a word without smoothing, `tokens` the number of words."""
        return self.of_output(model, batch, model(batch.features, batch.tokens[:, :-1], batch.mask))

    def of_output(self, model: CaptionModel, batch: Batch, output: Output) -> dict[str, Tensor]:
        """Compute the loss of an unrolled model, for objectives that add a term to it."""
        logits, targets, real = score_words(model, batch, output)
        log_probs = functional.log_softmax(logits, dim=-1)
        nll = functional.nll_loss(log_probs, targets)
        loss = nll
        if self.label_smoothing:
            loss = (1 - self.label_smoothing) * nll - self.label_smoothing * log_probs.mean(-1).mean()
        tokens = real.sum()
        if self.normalisation == "per_caption":
            loss = loss * tokens / len(real)
        return {"loss": loss, "nll": nll.detach(), "tokens": tokens.to(torch.float32)}


def score_words(model: CaptionModel, batch: Batch, output: Output) -> tuple[Tensor, Tensor, Tensor]:
    """Score the next words of an unrolled model.

    Returns:
        float32 logits (words, V) and target ids (words,) of the real words, and where these stand (B, T).
    """
    targets = batch.tokens[:, 1:]
    real = targets != PAD
    return model.head(output.hidden[real]).float(), targets[real], real
