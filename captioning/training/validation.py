"""What a validation finds, batch by batch, and the same from all processes as one alone would find it."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from captioning.metrics.pointing import Pointing
from captioning.processes import gather
from captioning.training.attention_statistics import AttentionStatistics


class Loss(NamedTuple):
    """Of a batch: nats per word, and the number of words."""

    nll: float | Tensor
    num_words: int


class Captions(NamedTuple):
    """Of a batch of images: texts by image id, how attention was spread, if there is any, and what it hit."""

    candidates: Mapping[str, str]
    references: Mapping[str, Sequence[str]]
    attention: AttentionStatistics | None
    pointing: Pointing


class Validation:
    """Losses and captions by the number of their batch, among the batches of all processes."""

    def __init__(self) -> None:
        self.losses: dict[int, Loss] = {}
        self.captions: dict[int, Captions] = {}

    def gathered(self) -> "Validation":
        """Return the findings of all processes in the order of the batches, each batch once."""
        losses = {number: Loss(float(nll), words) for number, (nll, words) in self.losses.items()}
        whole = Validation()
        for their_losses, their_captions in gather((losses, self.captions)):
            whole.losses |= their_losses
            whole.captions |= their_captions
        whole.losses = dict(sorted(whole.losses.items()))
        whole.captions = dict(sorted(whole.captions.items()))
        return whole

    @property
    def nll(self) -> float:
        """Nats per word over all batches; NaN without any."""
        total = math.fsum(loss.nll * loss.num_words for loss in self.losses.values())
        return total / sum(loss.num_words for loss in self.losses.values()) if self.losses else math.nan

    @property
    def candidates(self) -> dict[str, str]:
        """The captions of all images."""
        return {key: text for part in self.captions.values() for key, text in part.candidates.items()}

    @property
    def references(self) -> dict[str, Sequence[str]]:
        """The references of all images."""
        return {key: texts for part in self.captions.values() for key, texts in part.references.items()}

    @property
    def attention(self) -> list[AttentionStatistics]:
        """The statistics of all batches whose captions have attention."""
        return [part.attention for part in self.captions.values() if part.attention is not None]

    @property
    def pointing(self) -> list[Pointing]:
        """Where the attention of all batches lay."""
        return [part.pointing for part in self.captions.values()]
