"""Run folders as trainings leave them: options, validation by epoch, scored captions of the best epoch.

Everything is read from the folders themselves, so that it does not matter which launcher ran them, and
whether they have ended. Runs that differ in nothing but their seed, and in options that change no number, are
runs of one setting.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from captioning.errors import InputError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Options, and groups of them, that make no other setting.
_NO_SETTING = (
    *("seed", "name", "resume", "output_dir", "data_root", "prepare", "logger", "checkpoint_every"),
    *("keep_every_epoch", "num_samples", "trace_shapes", "trainer.callbacks", "trainer.enable_progress_bar"),
    *("trainer.log_every_n_steps", "data.num_workers", "data.check", "features.run.num_workers"),
)
_START = "start_from"
_TOKENIZER = ("data.tokenizer", "data/tokenizer")


class TrainingRun(NamedTuple):
    """One run folder.

    options: every option by its dotted key, and the choice of every group by the group's name.
    given: the keys that were given on the command line.
    finished: False for a run that failed, was stopped, or still trains.
    parameters: number of them; None before the first epoch has ended.
    scored: the tokens that CIDEr-D and BLEU-4 count; empty where the run does not say.
    best: validation of the epoch with the best CIDEr-D; CIDEr-D and BLEU-4 times 100.
    epochs: validation of every epoch.
    """

    folder: Path
    options: dict[str, str]
    given: tuple[str, ...]
    finished: bool
    parameters: int | None
    scored: str
    best: dict[str, float]
    epochs: list[dict[str, float]]

    @property
    def tokenizer(self) -> dict[str, str]:
        """The options of the tokenizer, whose tokens the loss is a mean over."""
        return {key: value for key, value in self.options.items() if key.startswith(_TOKENIZER)}

    def scored_captions(self) -> dict[str, float]:
        """Return the CIDEr-D × 100 of the best epoch's caption of each validation image; empty if unknown."""
        path = self.folder / "validation.csv"
        if not path.is_file():
            return {}
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        try:  # a run that was resumed elsewhere may have left another epoch's
            is_best = {int(row["epoch"]) for row in rows} == {int(self.best["epoch"])}
            return {row["image_id"]: float(row["cider_d"]) for row in rows} if is_best else {}
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} is no file of scored captions ({error!r}); remove it") from error


def read_runs(folders: Iterable[str | Path]) -> list[TrainingRun]:
    """Read the run folders among the given ones and below them, each once.

    Raises:
        InputError: a folder that is missing or holds no run, or a file in it that is damaged.
    """
    found: dict[Path, TrainingRun] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}; give run folders, or folders that hold some")
        places = [folder, *sorted((path.parent for path in folder.rglob(".hydra")), key=_by_number)]
        places += sorted(path.parent for path in folder.rglob("summary.json"))
        runs = {place.resolve(): place for place in places if _is_run(place)}
        if not runs:
            raise InputError(
                f"{folder} holds no training run; needed are folders with the summary.json or the .hydra/ "
                "that captioning train writes"
            )
        found |= {real: _read_run(place) for real, place in runs.items() if real not in found}
    return list(found.values())


def describe_runs(runs: Sequence[TrainingRun]) -> list[str]:
    """Describe each run's setting by the options in which the settings differ; "" where there is only one."""
    runs = _merge_starts(runs)
    given = dict.fromkeys(key for run in runs for key in run.given if not _is_ignored(key))
    keys = _differing(runs, given)
    # Configs may also differ where nothing was given, after a change of the YAML or between experiments.
    groups: dict[str, list[TrainingRun]] = {}
    for run in runs:
        groups.setdefault(_describe(run, keys), []).append(run)
    keys += [key for group in groups.values() for key in _differing(group, _all_keys(group))]
    return [_describe(run, dict.fromkeys(keys)) for run in runs]


def _merge_starts(runs: Sequence[TrainingRun]) -> list[TrainingRun]:
    """Give runs one `start_from` where every seed begins with a run of its own and all else is equal."""
    groups: dict[frozenset[tuple[str, str]], list[TrainingRun]] = {}
    for run in runs:
        groups.setdefault(_without_start(run), []).append(run)
    merged = set()
    for key, group in groups.items():
        pairs = {(run.options.get("seed"), run.options.get(_START, "None")) for run in group}
        seeds, starts = map(set, zip(*pairs, strict=True))
        if 1 < len(pairs) == len(seeds) == len(starts) and "None" not in starts:
            merged.add(key)
    own = {_START: "one for each seed"}
    return [run._replace(options=run.options | own) if _without_start(run) in merged else run for run in runs]


def _without_start(run: TrainingRun) -> frozenset[tuple[str, str]]:
    return frozenset(item for item in run.options.items() if item[0] != _START and not _is_ignored(item[0]))


def _describe(run: TrainingRun, keys: Iterable[str]) -> str:
    return " ".join(f"{key}={run.options.get(key, '–')}" for key in keys)


def _all_keys(runs: Sequence[TrainingRun]) -> dict[str, None]:
    return dict.fromkeys(key for run in runs for key in run.options if not _is_ignored(key))


def _differing(runs: Sequence[TrainingRun], keys: Iterable[str]) -> list[str]:
    return [key for key in keys if len({run.options.get(key) for run in runs}) > 1]


def _is_ignored(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _NO_SETTING)


def _by_number(path: Path) -> tuple[Path, int, str]:
    return path.parent, int(path.name) if path.name.isdecimal() else -1, path.name


def _is_run(folder: Path) -> bool:
    if (folder / "summary.json").is_file():
        return True
    # One that ended before its first epoch; other commands leave such folders too.
    job = _read(folder / ".hydra" / "hydra.yaml").get("hydra", {}).get("job", {})
    return job.get("config_name") == "train"


def _read_run(folder: Path) -> TrainingRun:
    summary = _read(folder / "summary.json")
    overrides = _read(folder / ".hydra" / "overrides.yaml", list)
    choices = _read(folder / ".hydra" / "hydra.yaml").get("hydra", {}).get("runtime", {}).get("choices", {})
    options = dict(_flatten(_read(folder / ".hydra" / "config.yaml")))
    options |= {key: str(value) for key, value in choices.items() if not key.startswith("hydra/")}
    try:
        return TrainingRun(
            folder=folder,
            options=options,
            given=tuple(str(override).partition("=")[0].lstrip("+~") for override in overrides),
            finished=bool(summary.get("finished", False)),
            parameters=summary.get("parameters"),
            scored=str(summary.get("scored", "")),
            best={key: float(value) for key, value in (summary.get("best") or {}).items()},
            epochs=[dict(epoch) for epoch in summary.get("epochs", [])],
        )
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder / 'summary.json'} is not what captioning train writes ({error})"
        ) from error


def _read(path: Path, kind: type = dict) -> Any:
    """Read a JSON or YAML file; a missing one is empty."""
    if not path.is_file():
        return kind()
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.load(text, _LOADER)
    except (ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} can't be read ({str(error)[:200]}); is it whole?") from error
    return content if isinstance(content, kind) else kind()


def _flatten(node: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)
