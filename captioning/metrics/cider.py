"""CIDEr-D of a corpus and of each image (Vedantam, Zitnick and Parikh, CVPR 2015), also the reward of SCST.

For n = 1..4, a caption is a vector of n-gram counts times log(documents / document frequency). CIDEr-D is the
mean over n and over the references of Σ min(h, r) r / (‖h‖ ‖r‖), h the candidate's weights and r the
reference's, each times exp(-(length difference)² / 2σ²) with σ = 6, and the whole times 10. The COCO caption
toolkit calls this "CIDEr": clipped, with the Gaussian penalty, without stemming. As there, a caption's length
is its number of bigrams, and an n-gram that no document holds weighs as if one did.

The document frequencies set the scale, so they are a record that states its source: the references scored
(the toolkit's "corpus", where an image's score depends on the other images and one image alone scores 0), or
a fixed set such as the training references, as a reward or the score of a single image needs. Tokens may be
anything hashable; an end-of-sentence token counts where the caller appends it to candidates and references
alike.
"""

from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioning.metrics.document_frequencies import NUM_ORDERS, DocumentFrequencies
from captioning.metrics.ngrams import Integers, Occurrences, count_ngrams
from captioning.metrics.score import Score, Tokens, check_paired

Reals = NDArray[np.float64]

_SIGMA = 6.0
_SCALE = 10.0


class _Vectors(NamedTuple):
    """All references' weights for the n-grams of one order, sorted by image, then by n-gram; V of them."""

    num_ngrams: int
    key: Integers  # (V,) image * num_ngrams + n-gram
    reference: Integers  # (V,)
    weight: Reals  # (V,)
    norm: Reals  # (number of references,)


class CiderD:
    """CIDEr-D against references whose vectors are built once: a metric, and a reward for training.

    Raises:
        ValueError: An image has no references, or there is no image.
    """

    def __init__(
        self, references: Mapping[Hashable, Sequence[Tokens]], frequencies: DocumentFrequencies
    ) -> None:
        empty = [image for image, captions in references.items() if not captions]
        if empty or not references:
            raise ValueError(f"CIDEr-D needs references of every image; {len(empty)} have none: {empty[:3]}")
        self.frequencies = frequencies
        self._images = {image: number for number, image in enumerate(references)}
        self._num_references = np.array([len(captions) for captions in references.values()])
        sentences = list(chain.from_iterable(references.values()))
        self._num_bigrams = _count_bigrams(sentences)
        self._ngrams, occurrences = count_ngrams(sentences, NUM_ORDERS)
        image = np.repeat(np.arange(len(references)), self._num_references)
        self._vectors = [
            _cook(found, inverse, image)
            for found, inverse in zip(occurrences, frequencies.inverse(self._ngrams), strict=True)
        ]

    def scores(self, candidates: Sequence[tuple[Hashable, Tokens]]) -> Reals:
        """CIDEr-D (C,), in [0, 10], of C pairs of image id and tokens; an image may come any number of times.

        Raises:
            ValueError: An image has no references here.
        """
        if unknown := [image for image, _ in candidates if image not in self._images]:
            raise ValueError(
                f"{len(unknown)} candidates are of images without references, first {unknown[0]!r}"
            )
        image = np.array([self._images[image] for image, _ in candidates], np.int64)
        sentences = [tokens for _, tokens in candidates]
        num_bigrams = _count_bigrams(sentences)
        ngrams, occurrences = count_ngrams(sentences, NUM_ORDERS)
        orders = zip(
            self._vectors,
            occurrences,
            self._ngrams.find(ngrams),
            self.frequencies.inverse(ngrams),
            strict=True,
        )
        total = np.zeros(len(candidates))
        for vectors, found, known, inverse in orders:
            weight, norm = _weigh(found, inverse, len(candidates))
            number = known[found.ngram]
            key = np.where(number >= 0, image[found.sentence] * vectors.num_ngrams + number, -1)
            ours, theirs = _join(key, vectors.key)
            sentence, reference = found.sentence[ours], vectors.reference[theirs]
            cosine = np.minimum(weight[ours], vectors.weight[theirs]) * vectors.weight[theirs]
            cosine /= norm[sentence] * vectors.norm[reference]
            difference = num_bigrams[sentence] - self._num_bigrams[reference]
            cosine *= np.exp(-(difference**2) / (2 * _SIGMA**2))
            total += np.bincount(sentence, cosine, minlength=len(total))
        return _SCALE * total / (NUM_ORDERS * self._num_references[image])


def cider_d(
    candidates: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    frequencies: DocumentFrequencies | None = None,
) -> Score:
    """CIDEr-D of one candidate per image; `frequencies` default to those of the references ("corpus").

    Raises:
        ValueError: The two sequences do not pair up.
    """
    check_paired(candidates, references)
    frequencies = frequencies or DocumentFrequencies.of(references, source="corpus")
    per_image = CiderD(dict(enumerate(references)), frequencies).scores(list(enumerate(candidates)))
    return Score(float(per_image.mean()), per_image.tolist())


def _count_bigrams(sentences: Sequence[Tokens]) -> Integers:
    return np.array([max(len(tokens) - 1, 0) for tokens in sentences], np.int64)


def _weigh(found: Occurrences, inverse: Reals, num_sentences: int) -> tuple[Reals, Reals]:
    """The weight of every occurrence, and every sentence's norm, or 1 where that is 0 (no division by 0)."""
    weight = found.times * inverse[found.ngram]
    norm = np.sqrt(np.bincount(found.sentence, weight**2, minlength=num_sentences))
    return weight, np.where(norm == 0, 1.0, norm)


def _cook(found: Occurrences, inverse: Reals, image: Integers) -> _Vectors:
    weight, norm = _weigh(found, inverse, len(image))
    key = image[found.sentence] * len(inverse) + found.ngram
    order = np.argsort(key, kind="stable")
    return _Vectors(len(inverse), key[order], found.sentence[order], weight[order], norm)


def _join(wanted: Integers, ordered: Integers) -> tuple[Integers, Integers]:
    """Places (i, j) of all pairs with wanted[i] == ordered[j]; `ordered` is sorted and may repeat a key."""
    first = np.searchsorted(ordered, wanted, "left")
    count = np.searchsorted(ordered, wanted, "right") - first
    ours = np.repeat(np.arange(len(wanted)), count)
    offset = np.arange(len(ours)) - np.repeat(np.cumsum(count) - count, count)
    return ours, first[ours] + offset
