"""Captions in, numbers out: the metrics of the COCO caption toolkit, with exactly its numbers.

    ptb.py                      the toolkit's tokenizer (ptb_rules.py: its regular expressions)
    tokens.py                   what is counted in other languages than English
    bleu.py rouge.py cider.py   metrics in Python (ngrams.py, document_frequencies.py: counts and weights)
    meteor.py spice.py          metrics by their authors' Java programs, optional (toolkit.py finds them)
    agreement.py                CIDEr-D of captions against each other
    pointing.py                 whether attention lies on what the words name
    statistics.py               confidence intervals, and whether two systems differ
    diversity.py                statistics that need no reference: lengths, repetition, novelty, endings
    score.py                    Score, and the checks of what is scored

`score_all` takes strings; the metrics themselves take tokens. No torch and no network are used.
"""

from collections.abc import Iterable, Mapping, Sequence

from captioning.metrics.agreement import score_agreement
from captioning.metrics.bleu import score_bleu
from captioning.metrics.cider import CiderD, score_cider_d
from captioning.metrics.document_frequencies import DocumentFrequencies
from captioning.metrics.meteor import score_meteor
from captioning.metrics.ptb import ptb_tokenize
from captioning.metrics.rouge import score_rouge_l
from captioning.metrics.score import ImageId, MetricUnavailable, Score, check_aligned
from captioning.metrics.spice import score_spice
from captioning.metrics.tokens import PENN_TREEBANK, ScoredTokens, scored_tokens

__all__ = [
    "METRICS",
    "PENN_TREEBANK",
    "CiderD",
    "DocumentFrequencies",
    "MetricUnavailable",
    "Score",
    "ScoredTokens",
    "count_documents",
    "ptb_tokenize",
    "score_agreement",
    "score_all",
    "scored_tokens",
]

METRICS = ("bleu", "rouge_l", "cider_d", "meteor", "spice")


def score_all(
    names: Sequence[str],
    candidates: Mapping[ImageId, str],
    references: Mapping[ImageId, Sequence[str]],
    frequencies: DocumentFrequencies | None = None,
    tokens: ScoredTokens = PENN_TREEBANK,
) -> dict[str, Score]:
    """Score one caption per image by each of `names`, of `METRICS`; "bleu" gives bleu_1 to bleu_4.

    Scores are fractions, `per_image` in the order of `candidates`. CIDEr-D weighs n-grams by `frequencies`,
    or else by the given references, as the toolkit does: these need many images, and one image alone scores
    0.

    Raises:
        ValueError: An unknown name; image ids that differ; captions that are not strings; images without
            references.
        MetricUnavailable: METEOR or SPICE is asked for and something it needs is missing, or the captions are
            not English.
    """
    if unknown := [name for name in names if name not in METRICS]:
        raise ValueError(f"unknown metrics {unknown}; choose among {', '.join(METRICS)}")
    check_aligned(candidates, references)
    if not tokens.is_english and (others := [name for name in names if name in ("meteor", "spice")]):
        raise MetricUnavailable(
            f"{others[0]} knows English only, and the captions are of the language {tokens.language}"
        )
    found = [tokens.split(caption) for caption in candidates.values()]
    expected = [[tokens.split(caption) for caption in references[image]] for image in candidates]
    scores: dict[str, Score] = {}
    for name in names:
        scores |= _score(name, found, expected, frequencies)
    return scores


def count_documents(
    references: Iterable[Sequence[str]], *, source: str, tokens: ScoredTokens = PENN_TREEBANK
) -> DocumentFrequencies:
    """Count in how many images' references each n-gram occurs, tokenized as `score_all` does for CIDEr-D.

    Args:
        references: the captions of each image.
        source: what they are, such as "COCO Karpathy train".
        tokens: as they will be scored.
    """
    documents = [[_words(tokens.split(caption)) for caption in captions] for captions in references]
    return DocumentFrequencies.of(documents, source=source)


def _score(
    name: str,
    found: list[list[str]],
    expected: list[list[list[str]]],
    frequencies: DocumentFrequencies | None,
) -> dict[str, Score]:
    if name == "meteor":
        return {name: score_meteor(found, expected)}
    if name == "spice":
        return {name: score_spice(found, expected)}
    if name == "rouge_l":
        return {name: score_rouge_l(found, expected)}
    words = [_words(tokens) for tokens in found]
    references = [[_words(tokens) for tokens in captions] for captions in expected]
    if name == "cider_d":
        return {name: score_cider_d(words, references, frequencies)}
    return {f"bleu_{order}": score for order, score in enumerate(score_bleu(words, references), start=1)}


def _words(tokens: list[str]) -> list[str]:
    """Split mixed numbers ("22 3/4" with a no-break space), as the toolkit does except for ROUGE."""
    return " ".join(tokens).split()
