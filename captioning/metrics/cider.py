"""CIDEr-D of a corpus and of each image (Vedantam, Zitnick and Parikh, CVPR 2015), also the reward of SCST.

For n = 1..4, a caption is a vector of n-gram counts times log(documents / document frequency). CIDEr-D is the
mean over n and over the references of Σ min(h, r) r / (‖h‖ ‖r‖), h the candidate's weights and r the
reference's, each times exp(-(length difference)² / 2σ²) with σ = 6, and the whole times 10. The COCO caption
toolkit calls this "CIDEr": clipped, with the Gaussian penalty, without stemming. As there, a caption's length
is its number of bigrams, and an n-gram in no document counts as one in a single document.

The document frequencies set the scale, so they state their source: the references scored (the toolkit's
"corpus", where an image's score depends on the other images and one image alone scores 0), or a fixed set
such as the training references, as a reward or the score of a single image needs. Tokens may be anything
hashable; an end-of-sentence token counts where the caller appends it to candidates and references alike.
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
    """The weights of all references for the n-grams of one order, sorted by image, then n-gram; V of them."""

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
            _build_vectors(found, inverse, image)
            for found, inverse in zip(occurrences, frequencies.inverse(self._ngrams), strict=True)
        ]

    def scores(self, candidates: Sequence[tuple[Hashable, Tokens]]) -> Reals:
        """Score C pairs of image id and tokens: (C,), in [0, 10]. An image may have any number of candidates.

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
            # All pairs of a candidate's n-gram with the same n-gram in a reference of the same image; an
            # n-gram that no reference has gets the key -1, which joins nothing.
            key = np.where(number >= 0, image[found.sentence] * vectors.num_ngrams + number, -1)
            left, right = _join(key, vectors.key)
            sentence, reference = found.sentence[left], vectors.reference[right]
            cosine = np.minimum(weight[left], vectors.weight[right]) * vectors.weight[right]
            cosine /= norm[sentence] * vectors.norm[reference]
            difference = num_bigrams[sentence] - self._num_bigrams[reference]
            cosine *= np.exp(-(difference**2) / (2 * _SIGMA**2))
            total += np.bincount(sentence, cosine, minlength=len(total))
        return _SCALE * total / (NUM_ORDERS * self._num_references[image])


def score_cider_d(
    candidates: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    frequencies: DocumentFrequencies | None = None,
) -> Score:
    """Compute CIDEr-D of one candidate per image; the default `frequencies` are those of the references.

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
    """Return the weight of every occurrence, and every sentence's norm, 1 in place of 0."""
    weight = found.times * inverse[found.ngram]
    norm = np.sqrt(np.bincount(found.sentence, weight**2, minlength=num_sentences))
    return weight, np.where(norm == 0, 1.0, norm)


def _build_vectors(found: Occurrences, inverse: Reals, image: Integers) -> _Vectors:
    weight, norm = _weigh(found, inverse, len(image))
    key = image[found.sentence] * len(inverse) + found.ngram
    order = np.argsort(key, kind="stable")
    return _Vectors(len(inverse), key[order], found.sentence[order], weight[order], norm)


def _join(wanted: Integers, ordered: Integers) -> tuple[Integers, Integers]:
    """Return the indices (i, j) of all pairs with wanted[i] == ordered[j]; only `ordered` is sorted."""
    first = np.searchsorted(ordered, wanted, "left")
    count = np.searchsorted(ordered, wanted, "right") - first
    left = np.repeat(np.arange(len(wanted)), count)
    offset = np.arange(len(left)) - np.repeat(np.cumsum(count) - count, count)
    return left, first[left] + offset
