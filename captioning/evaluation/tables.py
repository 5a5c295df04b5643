"""Tables of one system's evaluation, or of two side by side, for the terminal and the comparison page."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from captioning.evaluation.scoring import Evaluation, percent
from captioning.metrics import Score
from captioning.metrics.seeds import SettingsDifference, mean_interval
from captioning.metrics.statistics import Difference, Interval

_DIVERSITY = {  # field of `Diversity`: name and format of its row
    "mean_length": ("words a caption", ".2f"),
    "vocabulary": ("different words used", "d"),
    "distinct_1": ("distinct-1", ".3f"),
    "distinct_2": ("distinct-2", ".3f"),
    "novel": ("novel captions", ".1%"),
    "unique": ("captions no other image has", ".1%"),
    "repeated_words": ("a word twice in a row", ".1%"),
    "repeated_trigrams": ("three words that come again", ".1%"),
    "bad_endings": ("ends in a function word", ".1%"),
}


class Table(NamedTuple):
    """A table of text; the first column holds the names of the rows. `note` says what its numbers mean."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    note: str = ""


def score_table(evaluations: Sequence[Evaluation], paired: Mapping[str, Difference]) -> Table:
    """Tabulate scores times 100 with intervals; for two systems also their difference and its p-value."""
    headings = ["metric", *(evaluation.name for evaluation in evaluations)]
    metrics = dict.fromkeys(metric for evaluation in evaluations for metric in evaluation.scores)
    rows = [
        [metric, *(_score_cell(e.scores.get(metric), e.intervals.get(metric)) for e in evaluations)]
        for metric in metrics
    ]
    if len(evaluations) > 1:
        headings += ["difference", "p"]
        for row in rows:
            row += _difference_cells(paired.get(row[0]))
    what = "[95 % interval]" if len(evaluations) == 1 else "[95 % interval] and p"
    note = f"{what}: over other images like these; other training seeds are not covered."
    tokens = evaluations[0].tokens
    over = "" if tokens.is_english else f" over {tokens}"
    return Table(f"scores × 100{over} [95 % interval]", headings, rows, note)


def settings_score_table(
    first: Sequence[Evaluation], second: Sequence[Evaluation], tests: Mapping[str, SettingsDifference]
) -> Table:
    """Tabulate the mean scores of several runs of two settings, their difference and its p-value."""
    metrics = [m for m in first[0].scores if all(m in run.scores for run in (*first, *second))]
    rows = [
        [metric, _mean_cell(first, metric), _mean_cell(second, metric), *_test_cells(tests.get(metric))]
        for metric in metrics
    ]
    headings = [f"{runs[0].name} … ({len(runs)} runs)" for runs in (first, second)]
    note = (
        "Mean ± half its 95 % t interval: over other seeds, on these images. Difference [95 % interval] and "
        "p: over other seeds and other images together."
    )
    return Table("scores × 100", ["metric", *headings, "difference", "p"], rows, note)


def _mean_cell(runs: Sequence[Evaluation], metric: str) -> str:
    interval = mean_interval([100 * run.scores[metric].corpus for run in runs])
    if interval is None or math.isnan(interval.score):
        return "–"
    return f"{interval.score:.1f} ± {interval.high - interval.score:.1f}"


def _test_cells(test: SettingsDifference | None) -> list[str]:
    if test is None or math.isnan(test.p_value):
        return ["–", "–"]
    span = f"{100 * test.difference:+.1f} [{100 * test.low:+.1f}, {100 * test.high:+.1f}]"
    return [span, p_cell(test.p_value)]


def _score_cell(score: Score | None, interval: Interval | None) -> str:
    if score is None:
        return "–"
    text = f"{100 * score.corpus:.1f}"
    return f"{text} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]" if interval else text


def _difference_cells(test: Difference | None) -> list[str]:
    if test is None or math.isnan(test.p_value):
        return ["–", "–"]
    return [f"{100 * test.difference:+.1f}", p_cell(test.p_value)]


def p_cell(p_value: float) -> str:
    """Format a p-value; none is zero, which `0.000` would say."""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def diversity_table(evaluations: Sequence[Evaluation]) -> Table:
    """Tabulate lengths, variety and repetition, which need no references."""
    rows, counted = [], _counted(evaluations[0])
    for key, (name, style) in _DIVERSITY.items():
        if key == "bad_endings" and not evaluations[0].tokens.is_english:
            continue  # the list of function words is English
        name = name.replace("word", counted.removesuffix("s"))
        values = [getattr(evaluation.diversity, key) for evaluation in evaluations]
        cells = [f"{value:{style}}".replace("%", " %") for value in values]
        if key == "novel":
            cells = [c if e.novel_is_known else "–" for c, e in zip(cells, evaluations, strict=True)]
        rows.append([name, *cells])
    return Table("captions", ["", *(evaluation.name for evaluation in evaluations)], rows)


def length_table(evaluations: Sequence[Evaluation]) -> Table:
    """Tabulate the mean score by caption length, with the number of captions."""
    buckets = [{(b.first, b.last): b for b in evaluation.lengths} for evaluation in evaluations]
    spans = sorted({span for found in buckets for span in found})
    rows = []
    for first, last in spans:
        words = f"{first} and more" if last is None else f"{first} to {last}"
        cells = [found.get((first, last)) for found in buckets]
        rows.append([words, *(f"{100 * b.score:.1f} ({b.captions})" if b else "–" for b in cells)])
    counted = _counted(evaluations[0])
    title = f"mean {evaluations[0].length_metric} × 100 by {counted} a caption (captions)"
    return Table(title, [counted, *(evaluation.name for evaluation in evaluations)], rows)


def _counted(evaluation: Evaluation) -> str:
    """Name what lengths count: words of English, else what the scores count."""
    return "words" if evaluation.tokens.is_english else evaluation.tokens.unit


def images_csv(evaluations: Sequence[Evaluation]) -> str:
    """Format one line per image: its id, then each system's caption, number of words and scores times 100."""
    suffixes = {1: [""], 2: ["_first", "_second"]}.get(
        len(evaluations), [f"_{number}" for number in range(1, len(evaluations) + 1)]
    )
    columns: dict[str, list[object]] = {"image_id": list(evaluations[0].captions)}
    for suffix, evaluation in zip(suffixes, evaluations, strict=True):
        columns[f"caption{suffix}"] = list(evaluation.captions.values())
        columns[f"words{suffix}"] = list(evaluation.num_words)
        for metric, score in evaluation.scores.items():
            columns[f"{metric}{suffix}"] = [percent(value) for value in score.per_image]
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()
