"""What captions are scored against: a split's reference captions, and the weights of CIDEr-D's n-grams."""

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from captioning.data.records import Annotated
from captioning.errors import InputError
from captioning.metrics import PENN_TREEBANK, DocumentFrequencies, ScoredTokens, count_documents

log = logging.getLogger(__name__)


class References(NamedTuple):
    """The references of one split.

    name: of data set and split.
    records: of the split's images that have captions, by image id.
    without_captions: ids of the split's other images, which can be captioned but not scored.
    training: the captions of each training image, for novelty; empty where they are unknown.
    frequencies: the document frequencies that weight CIDEr-D's n-grams; None until `with_frequencies`.
    tokens: what scores count.
    """

    name: str
    records: dict[str, Annotated]
    without_captions: frozenset[str]
    training: list[tuple[str, ...]]
    frequencies: DocumentFrequencies | None = None
    tokens: ScoredTokens = PENN_TREEBANK

    @classmethod
    def read(
        cls,
        name: str,
        reader: Callable[[], list[Annotated]],
        split: str,
        tokens: ScoredTokens = PENN_TREEBANK,
    ) -> "References":
        """Read annotations and keep one split; no features are needed.

        Raises:
            InputError: what the reader refuses, or there is no such split.
        """
        return cls.of(name, reader(), split, tokens)

    @classmethod
    def of(
        cls, name: str, records: Iterable[Annotated], split: str, tokens: ScoredTokens = PENN_TREEBANK
    ) -> "References":
        """Keep one split's records and the training captions.

        Raises:
            InputError: there is no such split, or none of its images has a caption.
        """
        records = list(records)
        chosen = {record.image_id: record for record in records if record.split == split}
        if not chosen:
            splits = ", ".join(sorted({record.split for record in records})) or "nothing"
            raise InputError(f"{name} has no split {split!r}; it has {splits}: choose one with split=")
        scored = {image_id: record for image_id, record in chosen.items() if record.captions}
        if not scored:
            raise InputError(
                f"no image of {name} {split} has a caption, so there is nothing to score against; choose "
                "another split with split=, or caption the images with captioning caption"
            )
        training = [record.captions for record in records if record.split == "train" and record.captions]
        without = frozenset(chosen.keys() - scored.keys())
        return cls(f"{name} {split}", scored, without, training, tokens=tokens)

    @property
    def captions(self) -> dict[str, tuple[str, ...]]:
        """The reference captions by image id."""
        return {image_id: record.captions for image_id, record in self.records.items()}

    @property
    def paths(self) -> dict[str, Path]:
        """The image files by image id."""
        return {image_id: record.path for image_id, record in self.records.items()}

    def hold_one_out(self) -> tuple[dict[str, str], "References"]:
        """Return the first caption of each image, for how people would score, and the references without it.

        Raises:
            InputError: an image has one caption only.
        """
        for image_id, record in self.records.items():
            if len(record.captions) < 2:
                raise InputError(
                    f"people=true scores a caption against the others of its image, and {image_id} of "
                    f"{self.name} has one only; choose data with several captions an image"
                )
        captions = {image_id: record.captions[0] for image_id, record in self.records.items()}
        others = {key: record._replace(captions=record.captions[1:]) for key, record in self.records.items()}
        return captions, self._replace(records=others)

    def with_frequencies(
        self, source: str | Path | None = None, *, save_to: str | Path | None = None
    ) -> "References":
        """Return the same references with the document frequencies that weight CIDEr-D.

        Args:
            source: `training` counts them in the training captions, a file name reads them, and None counts
                them in the references themselves, as the COCO toolkit does.
            save_to: a file to keep them in.

        Raises:
            InputError: no training captions, or a file that cannot be read.
        """
        if source == "training":
            frequencies = self._training_frequencies()
        elif source:
            frequencies = _load(source)
        else:
            frequencies = self._count(self.captions.values(), self.name)
            if len(self.records) == 1:
                # Each n-gram is in the one document there is, so its log inverse frequency is 0.
                log.warning(
                    "CIDEr-D of a single image is 0 by its own document frequencies; give "
                    "document_frequencies=training or a file"
                )
        if save_to:
            frequencies.save(save_to)
        return self._replace(frequencies=frequencies)

    def _training_frequencies(self) -> DocumentFrequencies:
        if not self.training:
            raise InputError("document_frequencies=training needs data with training captions; give data=…")
        return self._count(self.training, f"{self.name.rpartition(' ')[0]} train")

    def _count(self, captions: Iterable[Sequence[str]], source: str) -> DocumentFrequencies:
        if not self.tokens.is_english:  # frequencies that are kept in a file are of use for these tokens only
            source = f"{source}, {self.tokens}"
        return count_documents(captions, source=source, tokens=self.tokens)


def _load(path: str | Path) -> DocumentFrequencies:
    try:
        return DocumentFrequencies.load(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"document_frequencies={path} can't be read ({error}); make such a file with "
            "document_frequencies=training save_document_frequencies=<file>"
        ) from error
