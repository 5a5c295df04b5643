"""The comparison at the end of a Hydra multirun: its runs side by side, the best first."""

import csv
import io
import json
import logging
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from rich.text import Text

from captioning.files import write_text

log = logging.getLogger(__name__)

COLUMNS = {  # of the table: the key in a run's summary, and the decimals
    "CIDEr-D": ("cider_d", 1),
    "BLEU-4": ("bleu_4", 1),
    "nats a word": ("nll", 3),
    "epoch": ("epoch", 0),
}


class CompareRuns(Callback):
    """Collects the runs of a sweep, prints them by validation CIDEr-D and writes `comparison.csv`.

    The file grows with every run, so that a run that fails takes nothing with it.
    """

    def __init__(self) -> None:
        self.runs: list[dict[str, Any]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Add a run: its overrides and the best epoch of its summary."""
        if config.hydra.job.config_name != "train":  # the configs of other commands inherit from training's
            return
        hydra = OmegaConf.select(job_return.hydra_cfg, "hydra") if job_return.hydra_cfg is not None else None
        folder = Path(hydra.runtime.output_dir) if hydra is not None else Path()
        summary = folder / "summary.json"
        content = json.loads(summary.read_text()) if summary.is_file() else {}
        self.runs.append(
            {
                "run": " ".join(job_return.overrides or []) or "no overrides",
                "folder": str(folder),
                "parameters": content.get("parameters"),
                **(content.get("best") or {}),
                "failed": job_return.status != JobStatus.COMPLETED,
            }
        )
        if config.hydra.mode == RunMode.MULTIRUN:
            self._write(config)
            if any(run["failed"] for run in self.runs):  # Hydra then ends without calling on_multirun_end
                Console().print(table_of(self._ranked()))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Print the table and write the file."""
        if not self.runs:
            return
        if not any(run["failed"] for run in self.runs):
            Console().print(table_of(self._ranked()))
        log.info("the comparison is in %s", self._write(config))

    def _ranked(self) -> list[dict[str, Any]]:
        return sorted(self.runs, key=lambda run: run.get("cider_d", -1.0), reverse=True)

    def _write(self, config: DictConfig) -> Path:
        path = Path(config.hydra.sweep.dir) / "comparison.csv"
        write_text(path, csv_of(self._ranked()))
        return path


def table_of(runs: list[dict[str, Any]]) -> Table:
    """Build the table; failed runs have no numbers."""
    table = Table(title="Validation, best epoch of each run", title_justify="left")
    table.add_column("run")
    for heading in (*COLUMNS, "parameters"):
        table.add_column(heading, justify="right")
    for run in runs:
        cells = [f"{run[key]:.{digits}f}" if key in run else "" for key, digits in COLUMNS.values()]
        count = "failed" if run["failed"] else f"{run['parameters']:,}" if run["parameters"] else ""
        table.add_row(*map(Text, (run["run"], *cells, count)))
    return table


def csv_of(runs: list[dict[str, Any]]) -> str:
    """Convert runs to CSV, with every number that any of them has."""
    keys = list(dict.fromkeys(key for run in runs for key in run))
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(runs)
    return text.getvalue()
