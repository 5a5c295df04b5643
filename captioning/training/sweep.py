"""The comparison that a Hydra multirun ends with, read from the folders of its runs."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

log = logging.getLogger(__name__)


class CompareRuns(Callback):
    """Writes the comparison of a sweep's runs into its folder, after every run and at the end.

    It is made from the folders alone, so that it does not matter in which process a run ended: a launcher may
    start one for each. What a kill or a crash leaves is compared by `captioning compare <folder>`.

    Args:
        write: called with a list of folders and the output folder, and `with_curves`; returns tables.
        show: prints a table.
    """

    def __init__(self, *, write: Callable[..., list[Any]], show: Callable[[Any], None]) -> None:
        self.write, self.show = write, show

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Make the folder: the sweeper may keep a data base in it before any run begins."""
        Path(config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Write the tables; show them after a run that failed, as Hydra may then not come to the end."""
        if is_sweep(config):
            tables = self.write([config.hydra.sweep.dir], config.hydra.sweep.dir, with_curves=False)
            if job_return.status != JobStatus.COMPLETED:
                for table in tables:
                    self.show(table)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write and show the whole comparison."""
        if is_sweep(config):
            for table in self.write([config.hydra.sweep.dir], config.hydra.sweep.dir, with_curves=True):
                self.show(table)
            log.info("the comparison is in %s", config.hydra.sweep.dir)


def is_sweep(config: DictConfig) -> bool:
    """Return whether this is a sweep of trainings; the configs of other commands inherit from training's."""
    is_training: bool = config.hydra.job.config_name == "train"
    return is_training and config.hydra.mode == RunMode.MULTIRUN
