"""In how many documents (images) each n-gram occurs: the weights of CIDEr-D, and their source.

The file is JSON, so that frequencies of a training set can be kept beside a checkpoint:
``{"source": …, "num_documents": …, "words": [word, …], "orders": [{"prefix": [], "word": [], "count": []},
…]}``, where an n-gram of order n is its prefix's index in order n - 1 and its last word's index in ``words``.
"""

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioning.files import write_text
from captioning.metrics.ngrams import Integers, Ngrams, count_ngrams
from captioning.metrics.score import Tokens

NUM_ORDERS = 4


@dataclass(frozen=True, eq=False)
class DocumentFrequencies:
    """Counts of documents per n-gram of 1..4 words; a document is all references of one image."""

    ngrams: Ngrams
    counts: tuple[Integers, ...]
    num_documents: int
    source: str

    @classmethod
    def of(cls, documents: Iterable[Sequence[Tokens]], *, source: str) -> "DocumentFrequencies":
        """Count over `documents`; `source` says what they are, such as "COCO Karpathy train, PTB".

        Raises:
            ValueError: There is no document.
        """
        documents = list(documents)
        if not documents:
            raise ValueError(f"no documents to count n-grams in for the source {source!r}")
        ngrams, occurrences = count_ngrams(list(chain.from_iterable(documents)), NUM_ORDERS)
        document = np.repeat(np.arange(len(documents)), [len(captions) for captions in documents])
        counts = []
        for order, found in enumerate(occurrences, start=1):
            size = ngrams.size(order)
            pairs = np.unique(document[found.sentence] * size + found.ngram)
            counts.append(np.bincount(pairs % max(size, 1), minlength=size).astype(np.int64))
        return cls(ngrams, tuple(counts), len(documents), source)

    def inverse(self, others: Ngrams) -> list[NDArray[np.float64]]:
        """Return log(documents / document frequency) of the n-grams of `others`, order by order."""
        weights = []
        for count, number in zip(self.counts, self.ngrams.find(others), strict=True):
            known = np.append(count, 0)[number]  # the number -1 of an unknown n-gram reads the appended 0
            # An n-gram in no document counts as one in a single document.
            weights.append(np.log(self.num_documents) - np.log(np.maximum(known, 1)))
        return weights

    def save(self, path: str | Path) -> None:
        """Write the JSON file.

        Raises:
            TypeError: A word is neither a string nor an integer.
        """
        words = list(self.ngrams.words)
        if strange := [word for word in words if type(word) not in (str, int)]:
            raise TypeError(f"only strings and integers can be saved as words, not {strange[0]!r}")
        orders = []
        for order, (codes, count) in enumerate(zip(self.ngrams.codes, self.counts, strict=True)):
            prefix, word = np.divmod(codes, max(len(words), 1)) if order else (codes * 0, codes)
            orders.append({"prefix": prefix.tolist(), "word": word.tolist(), "count": count.tolist()})
        record = {
            "source": self.source,
            "num_documents": self.num_documents,
            "words": words,
            "orders": orders,
        }
        write_text(path, json.dumps(record, ensure_ascii=False, separators=(",", ":")))

    @classmethod
    def load(cls, path: str | Path) -> "DocumentFrequencies":
        """Read what `save` wrote.

        Raises:
            ValueError: The file is not such a record.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
            words: dict[Hashable, int] = {word: number for number, word in enumerate(record["words"])}
            if len(words) != len(record["words"]) or len(record["orders"]) != NUM_ORDERS:
                raise ValueError(f"needed are distinct words and {NUM_ORDERS} orders of n-grams")
            num_documents = _integers([record["num_documents"]], least=1)[0]
            codes, counts = [], []
            size = 1  # number of n-grams of the order before
            for order in record["orders"]:
                prefix = _integers(order["prefix"], most=size - 1)
                word = _integers(order["word"], most=len(words) - 1)
                count = _integers(order["count"], least=1, most=int(num_documents))
                if not len(prefix) == len(word) == len(count):
                    raise ValueError("the columns of an order differ in length")
                codes.append(prefix * len(words) + word)
                counts.append(count)
                size = len(count)
            source = str(record["source"])
        # What a file of another kind runs into; RecursionError: nested too deeply to be parsed.
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{path} holds no document frequencies ({error}); write it with DocumentFrequencies.save"
            ) from error
        return cls(Ngrams(words, codes), tuple(counts), int(num_documents), source)


def _integers(values: Any, *, least: int = 0, most: int = 2**62) -> Integers:
    """Convert a list of a file to an array.

    Raises:
        ValueError: it is no list of whole numbers in this range.
    """
    if not isinstance(values, list) or not all(
        type(value) is int and least <= value <= most for value in values
    ):
        raise ValueError(f"needed is a list of whole numbers from {least} to {most}, found {values!r:.60}")
    return np.array(values, np.int64)
