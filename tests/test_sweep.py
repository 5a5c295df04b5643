"""A multirun ends with its runs side by side, whatever started them."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import OmegaConf

from captioning.cli.command import prefer_own_options
from captioning.files import CONF
from captioning.training.sweep import CompareRuns
from tests.test_commands import ROOT, call


def installed(plugin: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(f"hydra_plugins.{plugin}") is None
    return pytest.mark.skipif(missing, reason="needs the extra `sweep`")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sweep_options(toy_overrides: list[str]) -> list[str]:
    return [*toy_overrides, "optimizer.lr=1e-2,1e-3", "seed=0,1"]


@pytest.fixture(scope="module")
def basic(sweep_options: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two settings with two seeds each, one run after the other."""
    folder = tmp_path_factory.mktemp("basic")
    done = call("train", "-m", *sweep_options, "hydra.sweep.dir=sweep", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Validation by setting" in done.stdout and "95 % t interval" in done.stdout
    return folder / "sweep"


@pytest.mark.slow
def test_a_multirun_ends_with_means_over_seeds_from_the_folders_of_its_runs(basic: Path) -> None:
    settings, runs = read_csv(basic / "comparison.csv"), read_csv(basic / "runs.csv")
    assert {row["setting"] for row in settings} == {"optimizer.lr=0.01", "optimizer.lr=0.001"}
    assert [row["runs"] for row in settings] == ["2", "2"] and len(runs) == 4
    for setting in settings:
        own = [float(run["nll"]) for run in runs if run["run"].startswith(setting["setting"] + " ")]
        assert len(own) == 2 and float(setting["nll"]) == pytest.approx(sum(own) / 2, abs=1e-5)
        assert float(setting["nll_low"]) < float(setting["nll"]) < float(setting["nll_high"])
    for run in runs:
        summary = json.loads((basic.parent / run["folder"] / "summary.json").read_text())
        assert summary["best"]["cider_d"] == float(run["cider_d"]) and summary["finished"]
        assert summary["parameters"] == int(run["parameters"])
    assert (basic / "curves.png").is_file() and (basic / "comparison.html").is_file()


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("joblib", marks=installed("hydra_joblib_launcher")),
        pytest.param("submitit_local", marks=installed("hydra_submitit_launcher")),
    ],
)
def test_every_launcher_gives_the_same_comparison(
    sweep_options: list[str], basic: Path, tmp_path: Path, launcher: str
) -> None:
    options = [*sweep_options, f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep"]
    done = call("train", "-m", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sweep" / "comparison.csv").read_text() == (basic / "comparison.csv").read_text()


@pytest.mark.slow
def test_compare_makes_the_table_of_a_sweep_from_its_runs(basic: Path, tmp_path: Path) -> None:
    done = call("compare", *(basic / str(number) for number in range(4)), "output_dir=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "comparison.csv").read_text() == (basic / "comparison.csv").read_text()
    assert "Validation by run" in done.stdout
    done = call("compare", "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and "there is no folder nowhere" in done.stderr


@pytest.mark.slow
def test_a_run_that_fails_leaves_the_others_and_the_comparison(
    toy_overrides: list[str], tmp_path: Path
) -> None:
    done = call(
        "train", "-m", *toy_overrides, "data.train_on=captions,sentences,captions", "hydra.sweep.dir=sweep", cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 2 and "error: data.train_on is 'sentences'" in done.stderr
    assert "Traceback" not in done.stderr
    runs = read_csv(tmp_path / "sweep" / "runs.csv")
    assert sorted((run["run"], run["finished"]) for run in runs) == [
        ("data.train_on=captions sweep/0", "True"),
        ("data.train_on=captions sweep/2", "True"),
        ("data.train_on=sentences", "False"),
    ]
    assert "unfinished" in done.stdout and "Validation by setting" in done.stdout


@pytest.mark.slow
@pytest.mark.exhaustive
@installed("hydra_optuna_sweeper")
def test_a_study_that_is_killed_goes_on_and_looks_for_the_greatest(
    toy_overrides: list[str], tmp_path: Path
) -> None:
    import optuna

    options = [
        *toy_overrides, "hydra/sweeper=optuna", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "hydra.sweep.dir=search",
    ]  # fmt: skip
    line = [sys.executable, "-m", "captioning.train", "-m", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        line, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as first:
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and finished(tmp_path / "search") < 2:
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
    done = call("train", "-m", *options, "hydra.sweeper.n_trials=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name="captioning", storage=f"sqlite:///{tmp_path}/search/study.db")
    values = [trial.value for trial in study.trials if trial.value is not None]
    runs = read_csv(tmp_path / "search" / "runs.csv")
    assert len(values) >= 3 and study.best_value == max(values)
    assert study.best_value == pytest.approx(max(float(run["cider_d"]) for run in runs if run["cider_d"]))
    assert sum(run["finished"] == "True" for run in runs) >= 4  # of before the kill, and after it


def finished(folder: Path) -> int:
    summaries = [path.read_text() for path in folder.glob("*/summary.json")]
    return sum('"finished": true' in text for text in summaries)


def test_a_sweep_of_another_command_is_not_compared(tmp_path: Path) -> None:
    """Their configs inherit from that of training, and with it this callback."""
    job = {"config_name": "extract"}
    config = OmegaConf.create(
        {"hydra": {"job": job, "sweep": {"dir": str(tmp_path)}, "mode": RunMode.MULTIRUN}}
    )

    def refuse(*_: object, **__: object) -> list[object]:
        raise AssertionError("nothing is to be written")

    callback = CompareRuns(write=refuse, show=refuse)
    callback.on_job_end(config, JobReturn())
    callback.on_multirun_end(config)


def test_our_options_stand_for_those_of_the_plugins() -> None:
    prefer_own_options()
    stored = ConfigStore.instance().repo["hydra"]
    for path in (CONF / "hydra").glob("*/*.yaml"):
        assert path.name not in stored.get(path.parent.name, {})
    assert "basic.yaml" in stored["launcher"]


@pytest.mark.slow
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(tmp_path: Path) -> None:
    """An extra that is missing looks like a class that no installed plugin has."""
    done = call(
        "train", "-m", "hydra/launcher=joblib", "seed=0",
        "hydra.launcher._target_=hydra_plugins.absent.AbsentLauncher", "hydra.sweep.dir=sweep", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        "error: AbsentLauncher is not installed; pip install 'captioning[sweep]'"
    )
