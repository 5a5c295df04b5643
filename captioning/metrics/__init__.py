"""Captions in, numbers out: the COCO caption toolkit's metrics, equal to its numbers, and what they need.

    ptb.py                      the toolkit's tokens (ptb_rules.py: their shapes)
    bleu.py rouge.py cider.py   metrics in Python (ngrams.py, document_frequencies.py: counting and weights)
    meteor.py spice.py          metrics by their authors' Java programs, optional (toolkit.py: where they are)
    statistics.py               confidence intervals, and whether two systems differ
    diversity.py                what no reference tells: lengths, repetition, novelty, endings
    score.py                    Score, and the checks of what is scored

`score_all` takes strings; the metrics themselves take tokens. Nothing of the project is imported, no torch,
no network.
"""

from collections.abc import Iterable, Mapping, Sequence

from captioning.metrics.bleu import bleu
from captioning.metrics.cider import CiderD, cider_d
from captioning.metrics.document_frequencies import DocumentFrequencies
from captioning.metrics.meteor import meteor
from captioning.metrics.ptb import tokenize
from captioning.metrics.rouge import rouge_l
from captioning.metrics.score import ImageId, MetricUnavailable, Score, check_aligned
from captioning.metrics.spice import spice

__all__ = [
    "METRICS",
    "CiderD",
    "DocumentFrequencies",
    "MetricUnavailable",
    "Score",
    "document_frequencies",
    "score_all",
    "tokenize",
]

METRICS = ("bleu", "rouge_l", "cider_d", "meteor", "spice")


def score_all(
    names: Sequence[str],
    candidates: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    frequencies: DocumentFrequencies | None = None,
) -> dict[str, Score]:
    """Score one caption per image by each of `names`, of `METRICS`; "bleu" gives bleu_1 to bleu_4.

    Scores are fractions, `per_image` in the order of `candidates`. CIDEr-D weighs by `frequencies`, or else
    by the given references, as the toolkit does: then it means something over many images only, and one image
    alone scores 0.

    Raises:
        ValueError: An unknown name; image ids that differ; captions that are not strings; images without
            references.
        MetricUnavailable: METEOR or SPICE is asked for and something it needs is missing.
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"unknown metrics {unknown}; choose among {', '.join(METRICS)}")
    check_aligned(candidates, references)
    found = [tokenize(caption) for caption in candidates.values()]
    expected = [[tokenize(caption) for caption in references[image]] for image in candidates]
    scores: dict[str, Score] = {}
    for name in names:
        scores |= _score(name, found, expected, frequencies)
    return scores


def document_frequencies(references: Iterable[Sequence[str]], *, source: str) -> DocumentFrequencies:
    """Count n-grams over images' references, in words cut as `score_all` cuts them for CIDEr-D.

    Args:
        references: the captions of each image.
        source: what they are, such as "COCO Karpathy train".
    """
    documents = [[_words(tokenize(caption)) for caption in captions] for captions in references]
    return DocumentFrequencies.of(documents, source=source)


def _score(
    name: str,
    found: list[list[str]],
    expected: list[list[list[str]]],
    frequencies: DocumentFrequencies | None,
) -> dict[str, Score]:
    if name == "meteor":
        return {name: meteor(found, expected)}
    if name == "spice":
        return {name: spice(found, expected)}
    if name == "rouge_l":
        return {name: rouge_l(found, expected)}
    words = [_words(tokens) for tokens in found]
    references = [[_words(tokens) for tokens in captions] for captions in expected]
    if name == "cider_d":
        return {name: cider_d(words, references, frequencies)}
    return {f"bleu_{order}": score for order, score in enumerate(bleu(words, references), start=1)}


def _words(tokens: list[str]) -> list[str]:
    """Cut mixed numbers ("22 3/4", a no-break space in it) in two, as the toolkit does except for ROUGE."""
    return " ".join(tokens).split()
