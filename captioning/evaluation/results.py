"""Result files: captions of any system in COCO's results format, read with suspicion, scored and compared.

A result file is a JSON list of `{"image_id": 42, "caption": "a dog"}`, one entry an image, which the COCO
evaluation server takes too. Everything here keeps the order of the references' images. Scores are fractions
as in `captioning.metrics`; `plain` and the tables multiply them by 100, as papers do. Words, for lengths,
diversity and novelty, are those of `vocabulary.tokenize`: a model never writes "t-shirt" as one word, and
that must not count as novel.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captioning.errors import InputError
from captioning.metrics import METRICS, DocumentFrequencies, Score, score_all
from captioning.metrics import tokenize as tokenize_as_toolkit
from captioning.metrics.bleu import NUM_ORDERS, count_bleu
from captioning.metrics.diversity import Bucket, Diversity, by_length, measure
from captioning.metrics.statistics import (
    Difference,
    Interval,
    Rows,
    bleu_rows,
    bootstrap,
    mean_rows,
    meteor_rows,
    randomization_test,
)
from captioning.vocabulary import tokenize

_SHOWN = 3
_EMPTY = "empty captions"
_JAVA_METRICS = ("meteor", "spice")


class Evaluation(NamedTuple):
    """What the captions of one system are worth.

    captions: by image id.
    scores: by metric; fractions.
    rows: what resampling needs, by metric.
    intervals: 95 % bootstrap, by metric; empty for a single image.
    novel_is_known: whether there were training captions to hold the captions against.
    lengths: mean score of `length_metric` by number of words.
    unavailable: what each metric lacks that could not be computed.
    """

    name: str
    captions: dict[str, str]
    scores: dict[str, Score]
    rows: dict[str, Rows]
    intervals: dict[str, Interval]
    diversity: Diversity
    novel_is_known: bool
    lengths: list[Bucket]
    length_metric: str
    unavailable: dict[str, str]


def as_json(captions: Mapping[str, str] | Mapping[str, list[str]]) -> str:
    """Write a result file's text, an entry a line; ids that are plain integers become integers again.

    Lists of captions, which the format does not know, stand under `captions`.
    """
    entries = [
        {"image_id": _as_integer(image_id), "caption" if isinstance(said, str) else "captions": said}
        for image_id, said in captions.items()
    ]
    return "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]\n"


def _as_integer(image_id: str) -> int | str:
    try:
        return int(image_id) if str(int(image_id)) == image_id else image_id
    except ValueError:
        return image_id


def read_results(
    path: str | Path, image_ids: Collection[str], *, allow_empty: bool = False
) -> dict[str, str]:
    """Read a result file; the captions come in the order of `image_ids`.

    Raises:
        InputError: no JSON list of entries; unknown, missing or duplicate image ids; captions that are empty
            or no text. The message names the first offenders of every kind and counts them.
    """
    captions: dict[str, str] = {}
    offenders: dict[str, list[str]] = {}
    known = set(image_ids)
    for number, entry in enumerate(_read_list(path), start=1):
        image_id, problem = _check(entry, known, captions, allow_empty)
        if problem:
            shown = f"number {number}" if image_id is None else _shorten(image_id)
            offenders.setdefault(problem, []).append(shown)
        if isinstance(image_id, str) and image_id in known:
            captions[image_id] = entry["caption"]
    if missing := [_shorten(image_id) for image_id in image_ids if image_id not in captions]:
        offenders["images without a caption"] = missing
    if offenders:
        told = "; ".join(_count(problem, shown) for problem, shown in offenders.items())
        remedy = f"; needed is one entry for each of the {len(known)} images of the references"
        empty = ", or allow_empty=true to score empty captions as such" if _EMPTY in offenders else ""
        raise InputError(f"{path} has {told}{remedy}{empty}")
    return {image_id: captions[image_id] for image_id in image_ids}


def _check(
    entry: Any, known: Collection[str], captions: Mapping[str, str], allow_empty: bool
) -> tuple[Any, str]:
    """Return the entry's image id, as text if it is one, and what is wrong with the entry, or nothing."""
    if not isinstance(entry, dict) or not {"image_id", "caption"} <= entry.keys():
        return None, "entries that are no record of image_id and caption"
    image_id, caption = entry["image_id"], entry["caption"]
    if isinstance(image_id, bool) or not isinstance(image_id, int | str):
        return image_id, "image ids that are neither an integer nor text"
    image_id = str(image_id)
    if image_id not in known:
        return image_id, "image ids that are unknown to the references"
    if image_id in captions:
        return image_id, "further captions of images that have one"
    if not isinstance(caption, str):
        return image_id, "captions that are not text"
    if any("\ud800" <= letter <= "\udfff" for letter in caption):
        return image_id, "captions with half a character (a lone surrogate)"
    return image_id, "" if caption.strip() or allow_empty else _EMPTY


def _count(problem: str, shown: Sequence[str]) -> str:
    more = ", …" if len(shown) > _SHOWN else ""
    return f"{len(shown)} {problem} ({', '.join(shown[:_SHOWN])}{more})"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _read_list(path: str | Path) -> list[Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"the result file {path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise InputError(f"{path} is not JSON ({error}); is it whole?") from error
    if not isinstance(content, list):
        raise InputError(
            f'{path} is no result file: needed a list [{{"image_id": …, "caption": …}}, …], '
            f"found {_shorten(content)}"
        )
    return content


def evaluate(
    name: str,
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    metrics: Sequence[str],
    training: Sequence[str] = (),
    seed: int = 0,
    resamples: int = 1000,
    frequencies: DocumentFrequencies | None = None,
) -> Evaluation:
    """Score captions, and say how sure the scores are and what they don't tell.

    Args:
        name: of the system, for tables.
        captions: one for each image of the references.
        references: by image id.
        metrics: of `captioning.metrics.METRICS`.
        training: captions against which novelty is meant; none if they are not known.
        seed: of the bootstrap.
        resamples: of the bootstrap.
        frequencies: that weigh CIDEr-D's n-grams; those of the references, as the toolkit does, if None.

    Raises:
        InputError: an unknown metric.
    """
    check_metrics(metrics)
    scores, unavailable = _score(captions, references, metrics, frequencies)
    rows = _rows(captions, references, scores)
    intervals = {}
    if len(captions) > 1:
        intervals = {
            metric: bootstrap(row, np.random.default_rng(seed), resamples) for metric, row in rows.items()
        }
    words = [tokenize(caption) for caption in captions.values()]
    metric = "cider_d" if "cider_d" in scores else next(iter(scores), "")
    return Evaluation(
        name=name,
        captions=dict(captions),
        scores=scores,
        rows=rows,
        intervals=intervals,
        diversity=measure(words, [tokenize(caption) for caption in training]),
        novel_is_known=bool(training),
        lengths=by_length(words, scores[metric].per_image) if metric else [],
        length_metric=metric,
        unavailable=unavailable,
    )


def check_metrics(metrics: Sequence[str]) -> None:
    """Refuse metrics that there aren't.

    Raises:
        InputError: an unknown metric, or none at all.
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
) -> tuple[dict[str, Score], dict[str, str]]:
    """Compute the metrics that can be; those in Python always can."""
    ours = [metric for metric in metrics if metric not in _JAVA_METRICS]
    scores, unavailable = score_all(ours, captions, references, frequencies), {}
    for metric in (metric for metric in metrics if metric in _JAVA_METRICS):
        try:
            scores |= score_all([metric], captions, references)
        except RuntimeError as error:  # something is missing, or the program failed
            unavailable[metric] = str(error)
    return scores, unavailable


def _rows(
    captions: Mapping[str, str], references: Mapping[str, Sequence[str]], scores: Mapping[str, Score]
) -> dict[str, Rows]:
    rows = {metric: mean_rows(score.per_image) for metric, score in scores.items() if metric != "meteor"}
    if "meteor" in scores and scores["meteor"].statistics:
        rows["meteor"] = meteor_rows(scores["meteor"].statistics)
    if "bleu_1" in scores:
        counts = count_bleu(
            [_ngram_words(caption) for caption in captions.values()],
            [[_ngram_words(caption) for caption in references[image_id]] for image_id in captions],
        )
        rows |= {f"bleu_{order}": bleu_rows(counts, order) for order in range(1, NUM_ORDERS + 1)}
    return rows


def _ngram_words(caption: str) -> list[str]:
    """Cut as `score_all` does for BLEU: a mixed number is two words."""
    return " ".join(tokenize_as_toolkit(caption)).split()


def compare(
    first: Evaluation, second: Evaluation, *, seed: int = 0, resamples: int = 1000
) -> dict[str, Difference]:
    """Test for each metric whether two systems differ on the same images (fractions, first minus second)."""
    return {
        metric: randomization_test(row, second.rows[metric], np.random.default_rng(seed), resamples)
        for metric, row in first.rows.items()
        if metric in second.rows
    }


def plain(evaluation: Evaluation) -> dict[str, Any]:
    """Say an evaluation in plain values: scores times 100, lengths in words, shares as fractions."""
    scores: dict[str, Any] = {}
    for metric, score in evaluation.scores.items():
        interval = evaluation.intervals.get(metric)
        scores[metric] = {
            "score": percent(score.corpus),
            "low": percent(interval.low) if interval else None,
            "high": percent(interval.high) if interval else None,
        }
    diversity = {key: round(value, 4) for key, value in evaluation.diversity._asdict().items()}
    if not evaluation.novel_is_known:
        diversity["novel"] = None
    lengths = [{**bucket._asdict(), "score": percent(bucket.score)} for bucket in evaluation.lengths]
    return {
        "scores": scores,
        "diversity": diversity,
        "by_length": {"metric": evaluation.length_metric, "words": lengths},
        "unavailable": evaluation.unavailable,
    }


def percent(fraction: float) -> float | None:
    """Multiply by 100; None for NaN, which JSON has no word for (SPICE gives it)."""
    return None if math.isnan(fraction) else round(100 * fraction, 4)
