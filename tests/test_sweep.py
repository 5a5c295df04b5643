"""A multirun ends with its runs side by side."""

import csv
import io
import json
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import OmegaConf
from rich.console import Console

from captioning.training.sweep import CompareRuns, csv_of, table_of
from tests.test_commands import call

pytestmark = pytest.mark.slow


def test_a_multirun_prints_and_writes_a_comparison(toy_overrides: list[str], tmp_path: Path) -> None:
    options = [o for o in toy_overrides if not o.startswith(("model.encoder", "model.attention_dim"))]
    done = call(
        "train", "-m", *options, "model=gru_attention_small,mean_pooled", "optimizer.lr=1e-3,4e-4",
        "hydra.sweep.dir=sweep", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = list(csv.DictReader((tmp_path / "sweep" / "comparison.csv").open()))
    assert len(runs) == 4 and {run["run"].split()[-2] for run in runs} == {
        "model=gru_attention_small", "model=mean_pooled",
    }  # fmt: skip
    scores = [float(run["cider_d"]) for run in runs]
    assert scores == sorted(scores, reverse=True) and "Validation, best epoch" in done.stdout
    for run in runs:
        summary = json.loads((Path(run["folder"]) / "summary.json").read_text())
        assert summary["best"]["cider_d"] == float(run["cider_d"])
        assert summary["parameters"] == int(run["parameters"])


def test_a_run_that_fails_leaves_the_others_and_the_comparison(
    toy_overrides: list[str], tmp_path: Path
) -> None:
    done = call(
        "train", "-m", *toy_overrides, "data.train_on=captions,sentences,captions", "hydra.sweep.dir=sweep", cwd=tmp_path
    )  # fmt: skip
    assert done.returncode != 0 and "data.train_on is 'sentences'" in done.stdout + done.stderr
    runs = list(csv.DictReader((tmp_path / "sweep" / "comparison.csv").open()))
    assert [run["failed"] for run in runs] == ["False", "False", "True"]
    assert "failed" in done.stdout and "Validation, best epoch" in done.stdout


def test_a_sweep_of_another_command_is_not_compared(tmp_path: Path) -> None:
    """Their configs inherit from that of training, and with it this callback."""
    job = {"config_name": "extract"}
    config = OmegaConf.create(
        {"hydra": {"job": job, "sweep": {"dir": str(tmp_path)}, "mode": RunMode.MULTIRUN}}
    )
    callback = CompareRuns()
    callback.on_job_end(config, JobReturn())
    callback.on_multirun_end(config)
    assert not callback.runs and not list(tmp_path.iterdir())


def test_failed_runs_stay_in_the_table() -> None:
    runs = [
        {
            "run": "lr=1",
            "folder": "0",
            "parameters": 1234,
            "cider_d": 30.04,
            "bleu_4": 9.96,
            "nll": 3.0,
            "epoch": 1,
            "failed": False,
        },
        {"run": "lr=9", "folder": "1", "parameters": None, "failed": True},
    ]
    console = Console(width=100, file=io.StringIO())
    console.print(table_of(runs))
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "30.0" in said and "10.0" in said and "1,234" in said and "failed" in said
    assert csv_of(runs).splitlines()[2] == "lr=9,1,,,,,,True"
