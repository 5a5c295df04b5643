"""Trainings side by side: every setting's mean over its seeds, every run, and whether the settings differ.

`write_study` leaves `comparison.csv` (a row a setting), `runs.csv` (a row a run), `curves.png` and
`comparison.html` (the tables and the curves). Runs that have not finished are listed, and left out of the
means. Settings whose scores count different tokens are neither ranked among each other nor tested.
"""

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from captioning.evaluation.comparison import fill_page, table_html
from captioning.evaluation.curves import curves_figure
from captioning.evaluation.runs import TrainingRun, describe_runs, read_runs
from captioning.evaluation.tables import Table, p_cell
from captioning.evaluation.visualise import close, save
from captioning.files import write_text
from captioning.metrics.seeds import mean_interval, settings_test
from captioning.metrics.statistics import mean_statistics

_COLUMNS = {  # of the tables: the key of a validation, and the decimals
    "CIDEr-D": ("cider_d", 1),
    "BLEU-4": ("bleu_4", 1),
    "nats a word": ("nll", 3),
    "epoch": ("epoch", 0),
}


class Setting(NamedTuple):
    """Runs that differ in their seed only; `name` is empty where all runs of a study do."""

    name: str
    runs: list[TrainingRun]

    @property
    def finished(self) -> list[TrainingRun]:
        """The runs that count: those with a validation that have ended."""
        return [run for run in self.runs if run.finished and run.best]

    @property
    def scored(self) -> str:
        """The tokens that the runs' scores count; empty where none says."""
        return ", ".join(sorted({run.scored for run in self.runs} - {""}))

    def values(self, key: str) -> list[float]:
        """Return a number of the best epoch, of every finished run that has it."""
        return [run.best[key] for run in self.finished if key in run.best]


def write_study(
    folders: Iterable[str | Path], output: str | Path, *, with_curves: bool = True
) -> list[Table]:
    """Write the comparison of all runs in some folders.

    Args:
        folders: of runs, or folders that hold runs.
        output: folder of the files.
        with_curves: whether `curves.png` and `comparison.html` are written too.

    Returns:
        the tables: settings, runs and, where there are several seeds, differences.

    Raises:
        InputError: see `read_runs`.
    """
    folders = list(folders)  # they are read and named
    output, settings = Path(output), group_runs(read_runs(folders))
    tables = [settings_table(settings), runs_table(settings), *differences_tables(settings)]
    write_text(output / "comparison.csv", _csv(map(_setting_row, settings)))
    write_text(output / "runs.csv", _csv(_run_row(*pair) for pair in _named_runs(settings)))
    if with_curves:
        figure = curves_figure({setting.name: setting.runs for setting in settings})
        save(figure, output / "curves.png")
        close(figure)
        picture = base64.b64encode((output / "curves.png").read_bytes()).decode()
        names = ", ".join(str(folder) for folder in folders)
        content = {"title": escape(names), "curves": picture, "tables": "\n".join(map(table_html, tables))}
        write_text(output / "comparison.html", fill_page("study.html", content))
    return tables


def group_runs(runs: Sequence[TrainingRun]) -> list[Setting]:
    """Group runs by setting: by the tokens that are scored, of the same the best mean CIDEr-D first."""
    groups: dict[str, list[TrainingRun]] = {}
    for name, run in zip(describe_runs(runs), runs, strict=True):
        groups.setdefault(name, []).append(run)
    settings = [Setting(name, members) for name, members in groups.items()]
    settings.sort(key=lambda setting: -_mean(setting.values("cider_d"), -1.0))
    return [setting for group in _by_tokens(settings) for setting in group]


def settings_table(settings: Sequence[Setting]) -> Table:
    """Tabulate every setting's mean over runs with half its 95 % interval."""
    several = len(_by_tokens(settings)) > 1
    rows = []
    for setting in settings:
        count = str(len(setting.finished))
        if len(setting.runs) > len(setting.finished):
            count += f" of {len(setting.runs)}"
        cells = [_mean_cell(setting.values(key), digits) for key, digits in _COLUMNS.values()]
        scored = [setting.scored or "unknown"] if several else []
        rows.append([setting.name or "all runs", count, *scored, *cells])
    note = (
        "Mean over runs ± half the 95 % t interval of that mean: over other seeds, on the same validation "
        "images. Each run counts with its epoch of the best CIDEr-D, which flatters CIDEr-D a little."
    )
    if any(len(setting.runs) > len(setting.finished) for setting in settings):
        note += " Runs that have not finished do not count."
    if not any(len(setting.finished) > 1 for setting in settings):
        note = "One run a setting: these numbers say nothing about other seeds; give -m seed=0,1,2."
    if several:
        note += " Scores over different tokens do not compare: ranks and tests are among the same tokens."
    if any(run.tokenizer != settings[0].runs[0].tokenizer for setting in settings for run in setting.runs):
        note += " Nats a word are of the tokenizer's own tokens, and do not compare between tokenizers."
    headings = ["setting", "runs", *(["scored over"] if several else []), *_COLUMNS]
    return Table("Validation by setting", headings, rows, note)


def runs_table(settings: Sequence[Setting]) -> Table:
    """Tabulate every run; of its options only what differs."""
    rows = []
    for name, run in _named_runs(settings):
        cells = [
            f"{run.best[key]:.{digits}f}" if key in run.best else "" for key, digits in _COLUMNS.values()
        ]
        state = "" if run.finished else "unfinished"
        count = f"{run.parameters:,}" if run.parameters else ""
        rows.append([name, *cells, count, state])
    note = "Every run's epoch of the best CIDEr-D; no intervals."
    header = ["run", *_COLUMNS, "parameters", ""]
    if not any(row[-1] for row in rows):  # all are finished
        header, rows = header[:-1], [row[:-1] for row in rows]
    return Table("Validation by run", header, rows, note)


def differences_tables(settings: Sequence[Setting]) -> list[Table]:
    """Tabulate how far each setting is from the best whose scores count the same tokens."""
    return [table for group in _by_tokens(settings) for table in _differences_tables(group)]


def _differences_tables(settings: Sequence[Setting]) -> list[Table]:
    """Make the table of settings over the same tokens; none where no two of them have several seeds."""
    scores = {setting.name: _scores(setting) for setting in settings}
    several = [name for name, runs in scores.items() if len(runs) > 1]
    if len(several) < 2:
        return []
    best, pairs = several[0], len(several) * (len(several) - 1) // 2
    images = list(scores[best][0])
    rows = []
    for name in [setting.name for setting in settings if setting.name != best]:
        other = any(run.keys() != scores[best][0].keys() for run in scores[name])
        if name not in several or other or len(images) < 2:
            rows.append([name, "–", "–"])
            continue
        sides = [
            [mean_statistics([run[image] for image in images]) for run in scores[one]] for one in (name, best)
        ]
        test = settings_test(sides[0], sides[1])
        cell = f"{test.difference:+.1f} [{test.low:+.1f}, {test.high:+.1f}]"
        rows.append([name, cell, p_cell(min(1.0, test.p_value * pairs))])
    note = (
        f"[95 % interval] and p: over other seeds and other images together ({len(images)} validation "
        f"images); p times the {pairs} pairs of settings (Bonferroni). –: one seed or image, or other images."
    )
    return [Table(f"CIDEr-D, difference from {best}", ["setting", "difference", "p"], rows, note)]


def _by_tokens(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Group settings by the tokens that their scores count; one that does not say goes with a single kind."""
    if len({setting.scored for setting in settings} - {""}) < 2:
        return [list(settings)]
    groups: dict[str, list[Setting]] = {}
    for setting in settings:
        groups.setdefault(setting.scored, []).append(setting)
    return list(groups.values())


def _scores(setting: Setting) -> list[dict[str, float]]:
    """Return the finished runs' CIDEr-D by image, all of the same images; empty where they are not."""
    runs = [run.scored_captions() for run in setting.finished]
    same = all(run and run.keys() == runs[0].keys() for run in runs)
    return runs if same else []


def _named_runs(settings: Sequence[Setting]) -> list[tuple[str, TrainingRun]]:
    """Name every run by its setting and its seed, or its folder where that does not tell runs apart."""
    named = []
    for setting in settings:
        seeds = [run.options.get("seed", "") for run in setting.runs]
        is_seed = all(seeds) and len(set(seeds)) == len(seeds)
        for run, seed in zip(setting.runs, seeds, strict=True):
            own = f"seed={seed}" if is_seed else str(run.folder)
            single = len(setting.runs) == 1 and setting.name
            named.append((setting.name if single else f"{setting.name} {own}".strip(), run))
    return named


def _mean(values: Sequence[float], default: float) -> float:
    return float(np.mean(values)) if values else default


def _mean_cell(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    interval = mean_interval(values)
    text = f"{np.mean(values):.{digits}f}"
    return f"{text} ± {interval.high - interval.score:.{digits}f}" if interval and digits else text


def _setting_row(setting: Setting) -> dict[str, Any]:
    row: dict[str, Any] = {
        "setting": setting.name,
        "scored": setting.scored,
        "runs": len(setting.finished),
        "unfinished": len(setting.runs) - len(setting.finished),
    }
    for key in dict.fromkeys(key for run in setting.finished for key in run.best):
        values = setting.values(key)
        interval = mean_interval(values)
        row[key] = round(_mean(values, 0.0), 6)
        if interval:
            row |= {f"{key}_low": round(interval.low, 6), f"{key}_high": round(interval.high, 6)}
    return row


def _run_row(name: str, run: TrainingRun) -> dict[str, Any]:
    return {
        "run": name,
        "folder": str(run.folder),
        "finished": run.finished,
        "parameters": run.parameters,
        **run.best,
    }


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    """Convert rows to CSV, with every column that any of them has."""
    rows = list(rows)
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
