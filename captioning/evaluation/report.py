"""What an evaluation leaves behind: `scores.json`, `images.csv`, and tables for the terminal."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from captioning.evaluation.references import References
from captioning.evaluation.scoring import Evaluation, compare, compare_settings, percent, to_json
from captioning.evaluation.tables import (
    Table,
    diversity_table,
    images_csv,
    length_table,
    score_table,
    settings_score_table,
)
from captioning.files import short_commit, write_text


def write_report(
    folder: str | Path,
    evaluations: Sequence[Evaluation],
    references: References,
    *,
    num_first: int | None = None,
    seed: int = 0,
    resamples: int = 1000,
    options: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
) -> list[Table]:
    """Write `scores.json` and `images.csv`.

    Args:
        folder: where they go.
        evaluations: of one system; or on the same images of two, or of several runs of each of two settings,
            which are then tested for a difference.
        references: what the captions were scored against.
        num_first: how many evaluations are runs of a first setting; the others are of a second. None where
            each is a system of its own.
        seed: of the test.
        resamples: of the test.
        options: of the command, to be kept in `scores.json`.
        details: further entries of `scores.json`.

    Returns:
        the tables of the report, scores first.
    """
    paired, scores = _test(evaluations, num_first, seed=seed, resamples=resamples)
    content = {
        "references": references.name,
        "commit": short_commit(),
        "num_images": len(references.records),
        "units": "scores and intervals (95 %) are times 100, diversity shares are fractions",
        "tokens": str(references.tokens),
        "document_frequencies": references.frequencies.source if references.frequencies else None,
        "systems": [{"name": evaluation.name, **to_json(evaluation)} for evaluation in evaluations],
        "paired": paired,
        "options": dict(options or {}),
        **(details or {}),
    }
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    write_text(Path(folder) / "images.csv", images_csv(evaluations))
    write_text(Path(folder) / "scores.json", f"{text}\n")
    tables = [scores, diversity_table(evaluations)]
    if evaluations[0].lengths:  # none where no metric could be computed
        tables.append(length_table(evaluations))
    return tables


def _test(
    evaluations: Sequence[Evaluation], num_first: int | None, *, seed: int, resamples: int
) -> tuple[dict[str, Any], Table]:
    """Test whether systems, or settings, differ: JSON-ready by metric, and the table of scores."""
    tests: Mapping[str, Any] = {}
    if num_first:
        first, second = evaluations[:num_first], evaluations[num_first:]
        tests = compare_settings(first, second)
        table = settings_score_table(first, second, tests)
    else:
        if len(evaluations) == 2:
            tests = compare(*evaluations, seed=seed, resamples=resamples)
        table = score_table(evaluations, tests)
    content = {
        metric: {
            **{name: percent(value) for name, value in test._asdict().items() if name != "p_value"},
            "p_value": round(test.p_value, 6),
        }
        for metric, test in tests.items()
        if not math.isnan(test.p_value)
    }
    return content, table


def print_table(table: Table) -> None:
    """Print a table on standard output; called by commands only."""
    note = Text(table.note) if table.note else None
    printed = RichTable(title=Text(table.title), title_justify="left", caption=note, caption_justify="left")
    for place, heading in enumerate(table.headings):
        printed.add_column(Text(heading), justify="right" if place else "left")
    for row in table.rows:
        printed.add_row(*map(Text, row))  # Text, as captions' names may hold rich's markup
    Console().print(printed)
