"""Further sentences without pictures: the decoder also learns from text alone, as a language model.

    loss = cross-entropy of the captions + weight * cross-entropy of sentences

Each batch comes with as many sentences, drawn at random. Their picture is unknown: the mean region of the
batch stands for it, so that any family can be trained this way.
"""

import gzip
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from captioning.data.dataset import Batch, pad_captions
from captioning.errors import InputError
from captioning.models.base import CaptionModel
from captioning.objectives.base import Objective, Terms, check_range
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.vocabulary import Vocabulary


class WithText(Objective):
    """Cross-entropy of captions, and of sentences that describe other pictures.

    Args:
        file: a sentence a line, UTF-8, possibly compressed (`.gz`).
        weight: of the sentences' cross-entropy.
        max_words: longer sentences are cut; None cuts none.
        cross_entropy: of both.

    Raises:
        InputError: a negative weight.
    """

    def __init__(
        self, *, file: str | Path, weight: float, max_words: int | None, cross_entropy: CrossEntropy
    ) -> None:
        check_range("weight", weight, 0)
        self.file, self.weight, self.max_words = Path(file), weight, max_words
        self.cross_entropy = cross_entropy
        self._sentences: list[list[int]] = []

    def prepare(self, references: Mapping[str, Sequence[str]], vocabulary: Vocabulary) -> None:
        """Read the sentences.

        Raises:
            InputError: the file cannot be read, or has no sentence.
        """
        try:
            with (gzip.open if self.file.suffix == ".gz" else open)(
                self.file, "rt", encoding="utf-8"
            ) as file:
                lines = [line for line in file if line.strip()]
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise InputError(
                f"objective.file={self.file} can't be read ({error}); needed is a text file with a sentence "
                "a line, possibly compressed (.gz)"
            ) from error
        if not lines:
            raise InputError(f"objective.file={self.file} is empty; needed is a sentence a line")
        self._sentences = [vocabulary.encode(line, max_words=self.max_words) for line in lines]

    def __call__(self, model: CaptionModel, batch: Batch) -> Terms:
        """Compute the loss; logs `text_nll` in nats per word beside what the captions' cross-entropy logs."""
        terms = self.cross_entropy(model, batch)
        text = self.cross_entropy(model, self._without_picture(batch))
        logged = {**terms.logged, "text_nll": text.logged["nll"]}
        return terms._replace(loss=terms.loss + self.weight * text.loss, logged=logged)

    def _without_picture(self, batch: Batch) -> Batch:
        """Draw as many sentences as the batch has captions; each has one region, the batch's mean."""
        drawn = torch.randint(len(self._sentences), (len(batch.tokens),)).tolist()
        tokens = pad_captions([self._sentences[row] for row in drawn]).to(batch.tokens.device)
        regions = batch.features if batch.mask is None else batch.features[batch.mask][None]
        mean = regions.float().mean((0, 1))  # (D,)
        features = mean.expand(len(tokens), 1, -1)  # (B, 1, D)
        return batch._replace(features=features, mask=None, tokens=tokens, image_rows=None)
