"""BLEU-1..4 of a corpus and of each image (Papineni et al., ACL 2002), with the COCO toolkit's constants.

BLEU-n is the geometric mean of the clipped precisions of 1..n words times the brevity penalty exp(1 - r/c)
where the candidates' length c is below the references' r. The corpus value pools counts and lengths over
images before dividing. As in the toolkit, r is the length of the reference closest to the candidate (the
shorter one of a tie), 1e-15 is added to each numerator and 1e-9 to each denominator, so that an image without
a matching 4-gram scores nearly, not exactly, 0.

Legend: I images, N = 4 orders.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioning.metrics.ngrams import Integers, Occurrences, count_ngrams, search
from captioning.metrics.score import Score, Tokens, check_paired

Numbers = Integers | NDArray[np.float64]

NUM_ORDERS = 4
_TINY = 1e-15
_SMALL = 1e-9


class BleuCounts(NamedTuple):
    """What BLEU counts in each image; the sums over any set of images give that set's corpus BLEU."""

    matches: Numbers  # (I, N) candidate n-grams found in the references, clipped
    guesses: Numbers  # (I, N) candidate n-grams
    candidate_length: Numbers  # (I,) words
    reference_length: Numbers  # (I,) words of the reference closest in length


def score_bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> tuple[Score, ...]:
    """Compute BLEU-1, -2, -3, -4 of one candidate per image against that image's references.

    Raises:
        ValueError: The two sequences do not pair up.
    """
    counts = count_bleu(candidates, references)
    per_image = bleu_of_counts(counts)  # (I, N)
    corpus = bleu_of_counts(BleuCounts(*(count.sum(0) for count in counts)))  # (N,)
    return tuple(Score(float(corpus[n]), per_image[:, n].tolist()) for n in range(NUM_ORDERS))


def count_bleu(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> BleuCounts:
    """Count clipped matches, guesses and lengths of every image.

    Raises:
        ValueError: The two sequences do not pair up.
    """
    check_paired(candidates, references)
    num_images = len(candidates)
    # All sentences are numbered together, candidates first; `image` maps a sentence to its image.
    image = np.concatenate(
        [np.arange(num_images), np.repeat(np.arange(num_images), [len(captions) for captions in references])]
    )
    ngrams, occurrences = count_ngrams([*candidates, *chain.from_iterable(references)], NUM_ORDERS)
    matches = [
        _clipped_matches(found, image, num_images, ngrams.size(n + 1)) for n, found in enumerate(occurrences)
    ]
    length = np.array([len(tokens) for tokens in candidates], np.int64)
    guesses = np.maximum(length[:, None] - np.arange(NUM_ORDERS), 0)  # (I, N)
    closest = [
        _closest_length(len(tokens), captions)
        for tokens, captions in zip(candidates, references, strict=True)
    ]
    return BleuCounts(np.stack(matches, axis=1), guesses, length, np.array(closest, np.int64))


def bleu_of_counts(counts: BleuCounts) -> NDArray[np.float64]:
    """BLEU-1..4 (…, N) of counts (…, N) and lengths (…): those of an image, a corpus, or many corpora."""
    precision = (counts.matches + _TINY) / (counts.guesses + _SMALL)
    score = np.cumprod(precision, axis=-1) ** (1 / np.arange(1, NUM_ORDERS + 1))
    ratio = (counts.candidate_length + _TINY) / (counts.reference_length + _SMALL)
    return score * np.exp(np.minimum(1 - 1 / ratio, 0.0))[..., None]


def _clipped_matches(found: Occurrences, image: Integers, num_images: int, num_ngrams: int) -> Integers:
    """Count, for one order, the n-grams of each candidate that its references have: (I,).

    Candidates are the first `num_images` sentences; `image` maps sentences to images.
    """
    # One integer for each pair of image and n-gram, by which candidates and references meet.
    pair = image[found.sentence] * num_ngrams + found.ngram
    is_candidate = found.sentence < num_images  # true, then false: occurrences are sorted by sentence
    candidate_pair, candidate_count = pair[is_candidate], found.times[is_candidate]
    place = search(candidate_pair, pair[~is_candidate])
    # A match counts at most as often as the reference that has the n-gram most often.
    most = np.zeros_like(candidate_count)
    np.maximum.at(most, place[place >= 0], found.times[~is_candidate][place >= 0])
    clipped = np.minimum(most, candidate_count)
    totals = np.bincount(found.sentence[is_candidate], clipped, minlength=num_images)
    return totals.astype(np.int64)


def _closest_length(length: int, references: Sequence[Tokens]) -> int:
    return min((abs(len(tokens) - length), len(tokens)) for tokens in references)[1]
