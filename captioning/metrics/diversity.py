"""Statistics that need no references: how long, varied, repetitive and complete captions are.

Captions are tokens; shares are in [0, 1]. Captions without tokens count as captions. Distinct-n follows Li et
al. (NAACL 2016): different n-grams over all n-grams of the corpus, which falls as the corpus grows, so
compare systems on the same images only. Captions trained on CIDEr alone are known for bad endings ("a man
riding a horse on a").
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

from captioning.metrics.score import Tokens

_FUNCTION_WORDS = (
    "a an the of in on at to by for from with into onto over under near and or but that which while is are "
    "his her its their some this these those as next front"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


class Diversity(NamedTuple):
    """Statistics of one set of captions."""

    mean_length: float  # words
    vocabulary: int  # different words used
    distinct_1: float
    distinct_2: float
    novel: float  # share of captions that are not among the training captions
    unique: float  # share of captions that no other image has
    repeated_words: float  # share of captions with a word twice in a row
    repeated_trigrams: float  # share of captions in which a trigram occurs twice
    bad_endings: float  # share of captions that end in a function word


class Bucket(NamedTuple):
    """The number of captions of first..last words (last None: no limit), and the mean of their scores."""

    first: int
    last: int | None
    captions: int
    score: float


def measure(captions: Sequence[Tokens], training: Sequence[Tokens] = ()) -> Diversity:
    """Measure captions, and their novelty against the `training` captions.

    Raises:
        ValueError: There are no captions.
    """
    if not captions:
        raise ValueError("no captions to measure; give one per image")
    known = set(map(tuple, training))
    sentences = [tuple(caption) for caption in captions]
    times: dict[tuple[Hashable, ...], int] = {}
    for sentence in sentences:
        times[sentence] = times.get(sentence, 0) + 1
    return Diversity(
        mean_length=sum(map(len, sentences)) / len(sentences),
        vocabulary=len({word for sentence in sentences for word in sentence}),
        distinct_1=_distinct(sentences, 1),
        distinct_2=_distinct(sentences, 2),
        novel=_share([sentence not in known for sentence in sentences]),
        unique=_share([times[sentence] == 1 for sentence in sentences]),
        repeated_words=_share([any(a == b for a, b in _ngrams(sentence, 2)) for sentence in sentences]),
        repeated_trigrams=_share([_repeats(sentence, 3) for sentence in sentences]),
        bad_endings=_share(
            [sentence[-1:] != () and sentence[-1] in FUNCTION_WORDS for sentence in sentences]
        ),
    )


def by_length(
    captions: Sequence[Tokens], per_image: Sequence[float], edges: Sequence[int] = (8, 10, 12, 15)
) -> list[Bucket]:
    """Compute the mean score by length: up to edges[0] - 1 words, edges[0] to edges[1] - 1, and so on.

    Empty buckets are left out.

    Raises:
        ValueError: There is not one score per caption.
    """
    if len(captions) != len(per_image):
        raise ValueError(f"{len(captions)} captions but {len(per_image)} scores; give one score per caption")
    starts = [0, *sorted(edges)]
    buckets = []
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        scores = [
            score
            for tokens, score in zip(captions, per_image, strict=True)
            if start <= len(tokens) and (end is None or len(tokens) < end)
        ]
        if scores:
            last = None if end is None else end - 1
            buckets.append(Bucket(start, last, len(scores), sum(scores) / len(scores)))
    return buckets


def _ngrams(sentence: tuple[Hashable, ...], order: int) -> Iterator[tuple[Hashable, ...]]:
    return zip(*(sentence[start:] for start in range(order)), strict=False)


def _distinct(sentences: Sequence[tuple[Hashable, ...]], order: int) -> float:
    ngrams = [ngram for sentence in sentences for ngram in _ngrams(sentence, order)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _repeats(sentence: tuple[Hashable, ...], order: int) -> bool:
    ngrams = list(_ngrams(sentence, order))
    return len(set(ngrams)) < len(ngrams)


def _share(statements: Sequence[bool]) -> float:
    return sum(statements) / len(statements)
