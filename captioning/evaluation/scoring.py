"""Scores of one system's captions with confidence intervals, and tests of whether two systems differ.

Scores are fractions, as in `captioning.metrics`; `to_json` and the tables multiply them by 100, as papers do.
Everything keeps the order of the captions' images. Intervals, and tests of two systems, resample images, see
`captioning.metrics.statistics`; they tell nothing about other training seeds. Tests of two settings with
several runs each do, see `captioning.metrics.seeds`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from captioning.errors import InputError
from captioning.metrics import METRICS, PENN_TREEBANK, DocumentFrequencies, Score, ScoredTokens, score_all
from captioning.metrics.bleu import NUM_ORDERS, count_bleu
from captioning.metrics.diversity import Bucket, Diversity, by_length, measure
from captioning.metrics.seeds import SettingsDifference, settings_test
from captioning.metrics.statistics import (
    Difference,
    Interval,
    SufficientStatistics,
    bleu_statistics,
    bootstrap,
    mean_statistics,
    meteor_statistics,
    randomization_test,
)
from captioning.tokenizers import tokenize

_JAVA_METRICS = ("meteor", "spice")


class Evaluation(NamedTuple):
    """All results for the captions of one system.

    captions: by image id.
    scores: by metric; fractions.
    statistics: what resampling needs, by metric.
    intervals: 95 % bootstrap, by metric; empty for a single image.
    novel_is_known: whether there were training captions to compare with.
    tokens: what the scores count.
    num_words: of each caption; words are the tokens, of English the vocabulary's words.
    lengths: mean score of `length_metric` by number of words.
    unavailable: for each metric that could not be computed, what it lacks.
    """

    name: str
    captions: dict[str, str]
    scores: dict[str, Score]
    statistics: dict[str, SufficientStatistics]
    intervals: dict[str, Interval]
    diversity: Diversity
    novel_is_known: bool
    tokens: ScoredTokens
    num_words: list[int]
    lengths: list[Bucket]
    length_metric: str
    unavailable: dict[str, str]


def score(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    metrics: Sequence[str],
    name: str = "captions",
    training: Sequence[str] = (),
    frequencies: DocumentFrequencies | None = None,
    tokens: ScoredTokens = PENN_TREEBANK,
    seed: int = 0,
    resamples: int = 1000,
) -> Evaluation:
    """Score one system's captions.

    Args:
        captions: one for each image of the references.
        references: by image id.
        metrics: some of `captioning.metrics.METRICS`.
        name: of the system, for tables.
        training: the captions among which a caption is not novel; empty where they are unknown.
        frequencies: weights of CIDEr-D's n-grams; None takes those of the references, as the toolkit does.
        tokens: what the scores count.
        seed: of the bootstrap.
        resamples: of the bootstrap.

    Raises:
        InputError: see `check_metrics`.
    """
    check_metrics(metrics)
    scores, unavailable = _score(captions, references, metrics, frequencies, tokens)
    statistics = _statistics(captions, references, scores, tokens)
    # The vocabulary's words: a model never writes the toolkit's "t-shirt", which must not count as novel.
    split = tokenize if tokens.is_english else tokens.split
    words = [split(caption) for caption in captions.values()]
    length_metric = "cider_d" if "cider_d" in scores else next(iter(scores), "")
    return Evaluation(
        name=name,
        captions=dict(captions),
        scores=scores,
        statistics=statistics,
        intervals=_intervals(statistics, seed, resamples) if len(captions) > 1 else {},
        diversity=measure(words, [split(caption) for caption in training]),
        novel_is_known=bool(training),
        tokens=tokens,
        num_words=[len(caption) for caption in words],
        lengths=by_length(words, scores[length_metric].per_image) if length_metric else [],
        length_metric=length_metric,
        unavailable=unavailable,
    )


def _intervals(
    statistics: Mapping[str, SufficientStatistics], seed: int, resamples: int
) -> dict[str, Interval]:
    # A generator for each metric: all metrics then see the same resampled images.
    return {
        metric: bootstrap(sums, np.random.default_rng(seed), resamples) for metric, sums in statistics.items()
    }


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse a list of metrics that is empty or names an unknown one.

    Raises:
        InputError: names the unknown ones and the choice.
    """
    unknown = [metric for metric in metrics if metric not in METRICS]
    if unknown or not metrics:
        raise InputError(
            f"metrics={list(metrics)} has {unknown or 'nothing'}; choose among {', '.join(METRICS)}"
        )


def _score(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    metrics: Sequence[str],
    frequencies: DocumentFrequencies | None,
    tokens: ScoredTokens,
) -> tuple[dict[str, Score], dict[str, str]]:
    """Compute the metrics that can be computed, and say what the others lack."""
    in_python = [metric for metric in metrics if metric not in _JAVA_METRICS]
    scores, unavailable = score_all(in_python, captions, references, frequencies, tokens), {}
    for metric in (metric for metric in metrics if metric in _JAVA_METRICS):
        try:
            scores |= score_all([metric], captions, references, tokens=tokens)
        except RuntimeError as error:  # Java or a jar is missing, or the program failed
            unavailable[metric] = str(error)
    return scores, unavailable


def _statistics(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    scores: Mapping[str, Score],
    tokens: ScoredTokens,
) -> dict[str, SufficientStatistics]:
    found = {
        metric: mean_statistics(score.per_image) for metric, score in scores.items() if metric != "meteor"
    }
    # BLEU and METEOR are ratios of sums over the corpus, so their means over images would be other numbers.
    if "meteor" in scores and scores["meteor"].statistics:
        found["meteor"] = meteor_statistics(scores["meteor"].statistics)
    if "bleu_1" in scores:
        counts = count_bleu(
            [_ngram_words(caption, tokens) for caption in captions.values()],
            [[_ngram_words(caption, tokens) for caption in references[image_id]] for image_id in captions],
        )
        found |= {f"bleu_{order}": bleu_statistics(counts, order) for order in range(1, NUM_ORDERS + 1)}
    return found


def _ngram_words(caption: str, tokens: ScoredTokens) -> list[str]:
    # As `score_all` does for BLEU: a mixed number ("22 3/4") is one token but two words.
    return " ".join(tokens.split(caption)).split()


def compare(
    first: Evaluation, second: Evaluation, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Difference]:
    """Test for each metric whether two systems differ on the same images (fractions, first minus second)."""
    return {
        metric: randomization_test(sums, second.statistics[metric], np.random.default_rng(seed), resamples)
        for metric, sums in first.statistics.items()
        if metric in second.statistics
    }


def compare_settings(
    first: Sequence[Evaluation], second: Sequence[Evaluation]
) -> dict[str, SettingsDifference]:
    """Test for each metric whether two settings differ, from several runs of each on the same images.

    There is no test of a single image.
    """
    runs = (*first, *second)
    if len(runs[0].captions) < 2:
        return {}
    return {
        metric: settings_test(
            [run.statistics[metric] for run in first], [run.statistics[metric] for run in second]
        )
        for metric in runs[0].statistics
        if all(metric in run.statistics for run in runs)
    }


def to_json(evaluation: Evaluation) -> dict[str, Any]:
    """Convert an evaluation to a JSON-ready dict: scores times 100, lengths in words, shares as fractions."""
    scores: dict[str, Any] = {}
    for metric, found in evaluation.scores.items():
        interval = evaluation.intervals.get(metric)
        scores[metric] = {
            "score": percent(found.corpus),
            "low": percent(interval.low) if interval else None,
            "high": percent(interval.high) if interval else None,
        }
    diversity = {key: round(value, 4) for key, value in evaluation.diversity._asdict().items()}
    if not evaluation.novel_is_known:
        diversity["novel"] = None
    if not evaluation.tokens.is_english:
        diversity["bad_endings"] = None  # the list of function words is English
    lengths = [{**bucket._asdict(), "score": percent(bucket.score)} for bucket in evaluation.lengths]
    return {
        "scores": scores,
        "diversity": diversity,
        "by_length": {"metric": evaluation.length_metric, "words": lengths},
        "unavailable": evaluation.unavailable,
    }


def percent(fraction: float) -> float | None:
    """Multiply by 100; None for NaN, which SPICE gives and JSON does not know."""
    return None if math.isnan(fraction) else round(100 * fraction, 4)
