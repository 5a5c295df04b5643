"""N-grams of many sentences at once, numbered in numpy: the counting that BLEU and CIDEr-D share.

An n-gram is stored as its first n - 1 words (the number of a shorter n-gram) and its last word, packed in one
integer: ``code = prefix * num_words + last_word``. One sort per order then numbers all n-grams of a corpus,
with no tuple built for any of them; a million n-grams take tens of megabytes. Nothing is hashed, so nothing
collides.

Legend: N orders (n-grams of 1..N words), E distinct (sentence, n-gram) pairs of one order.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioning.metrics.score import Tokens

Integers = NDArray[np.int64]


class Occurrences(NamedTuple):
    """How often each n-gram of one order occurs in each sentence, sorted by sentence, then n-gram."""

    sentence: Integers  # (E,)
    ngram: Integers  # (E,) number within the order
    times: Integers  # (E,) at least 1


class Ngrams:
    """The distinct n-grams of a set of sentences, numbered by their index in the codes of their order."""

    def __init__(self, words: dict[Hashable, int], codes: Sequence[Integers]) -> None:
        self.words = words
        self.codes = tuple(codes)

    def size(self, order: int) -> int:
        """Return how many distinct n-grams of `order` words there are."""
        return len(self.codes[order - 1])

    def find(self, others: "Ngrams") -> list[Integers]:
        """Return the number here of every n-gram of `others`, order by order; -1 where it is unknown here."""
        found: list[Integers] = []
        word = np.fromiter((self.words.get(word, -1) for word in others.words), np.int64, len(others.words))
        for order, codes in enumerate(others.codes[: len(self.codes)]):
            if order == 0:
                found.append(word[codes])
                continue
            # The number of an n-gram follows from the number of its prefix, found in the order before.
            prefix, last = np.divmod(codes, len(others.words))
            prefix, last = found[-1][prefix], word[last]
            number = search(self.codes[order], prefix * len(self.words) + last)
            found.append(np.where((prefix >= 0) & (last >= 0), number, -1))
        return found


def count_ngrams(sentences: Sequence[Tokens], num_orders: int = 4) -> tuple[Ngrams, list[Occurrences]]:
    """Number and count all n-grams of `sentences`.

    Returns:
        the distinct n-grams, and one `Occurrences` per order.
    """
    lengths = np.fromiter(map(len, sentences), np.int64, len(sentences))
    words: dict[Hashable, int] = {}
    flat = [words.setdefault(token, len(words)) for tokens in sentences for token in tokens]
    # All sentences in one row: at each word, the number of the n-gram that starts there and its sentence.
    last_word = np.array(flat, np.int64)
    number = last_word
    sentence = np.repeat(np.arange(len(lengths)), lengths)
    remaining = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(number))  # words to the sentence's end
    codes = [np.arange(len(words), dtype=np.int64)]
    occurrences = [_count(sentence, number, len(words))]
    for order in range(2, num_orders + 1):
        starts = np.flatnonzero(remaining >= order)
        code = number[starts] * len(words) + last_word[starts + order - 1]
        distinct, inverse = np.unique(code, return_inverse=True)
        number = np.zeros_like(last_word)
        number[starts] = inverse
        codes.append(distinct)
        occurrences.append(_count(sentence[starts], inverse, len(distinct)))
    return Ngrams(words, codes), occurrences


def search(ordered: Integers, wanted: Integers) -> Integers:
    """Return the index of each of `wanted` in the sorted, distinct `ordered`; -1 where it is absent."""
    if not len(ordered):
        return np.full(wanted.shape, -1, np.int64)
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[place] == wanted, place, -1)


def _count(sentence: Integers, number: Integers, num_ngrams: int) -> Occurrences:
    pairs, count = np.unique(sentence * num_ngrams + number, return_counts=True)
    return Occurrences(*np.divmod(pairs, max(num_ngrams, 1)), count)
