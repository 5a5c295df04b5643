"""A training run: its parts, its folder, and what it leaves there beside the checkpoints."""

import csv
import io
import itertools
import json
import logging
import sys
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from captioning.checkpoint import LAST
from captioning.data import CaptionDataModule
from captioning.errors import InputError
from captioning.files import PARTIAL, write_text
from captioning.training.checkpoint_io import best_epoch, copy_checkpoint
from captioning.training.environment import describe_environment
from captioning.training.module import CaptioningModule
from captioning.training.samples import log_options

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """Everything one training needs; `resume` is the checkpoint to go on from, if any."""

    name: str
    seed: int
    folder: Path
    module: CaptioningModule
    data: CaptionDataModule
    trainer: Trainer
    resume: Path | None

    def fit(self) -> float | None:
        """Train, write the summary, and return the monitored value of the best epoch, for sweeps."""
        log.info(
            "%s: %s parameters, %d words, run folder %s",
            self.name,
            f"{self.num_parameters:,}",
            len(self.module.vocabulary),
            self.folder,
        )
        kept, metrics = None, self.folder / "metrics.csv"
        if self.trainer.is_global_zero:
            self.write_caption_ids()
            write_text(self.folder / "environment.json", json.dumps(describe_environment(), indent=1) + "\n")
            kept = self._prepare_folder(metrics)
            self.trainer.callbacks.insert(0, _WriteSummary(self))  # type: ignore[attr-defined]
            # Only now: a CSV logger that is used deletes the metrics in its folder.
            log_options(self.trainer.loggers, {"name": self.name, "seed": self.seed, **self.module.metadata})
        self._fit()
        if self.trainer.is_global_zero:
            self.write_summary(finished=True)
            if kept and not metrics.exists():  # there was nothing left to train
                kept.rename(metrics)
        best: Any = self.trainer.checkpoint_callback
        if best is None or best.best_model_score is None:
            return None
        log.info("best %s %.3f: %s", best.monitor, best.best_model_score, best.best_model_path)
        return float(best.best_model_score)

    @property
    def num_parameters(self) -> int:
        """Number of trained and frozen parameters of the model."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def _prepare_folder(self, metrics: Path) -> Path | None:
        """Clear away what a kill has left in the run folder, and keep what this run would overwrite.

        Returns:
            the new name of the metrics, if there were any; Lightning's CSVLogger begins a new file.
        """
        checkpoints = self.folder / "checkpoints"
        for unfinished in checkpoints.glob(f"*{PARTIAL}"):
            unfinished.unlink()
        if self.resume:
            # Killed before its first checkpoint, this run is resumed from there, not from its best epoch.
            copy_checkpoint(self.resume, checkpoints / LAST)
        if not (self.resume and metrics.is_file()):
            return None
        free = (self.folder / f"metrics_{number}.csv" for number in itertools.count(1))
        return metrics.rename(next(path for path in free if not path.exists()))

    def _fit(self) -> None:
        try:
            self.trainer.fit(self.module, datamodule=self.data, ckpt_path=self.resume, weights_only=True)
        except SystemExit as stop:
            if not self.trainer.interrupted:
                raise
            if self.trainer.is_global_zero:
                io: Any = self.trainer.strategy.checkpoint_io
                saved = self.resume is not None or io.num_written > 0
                remedy = f"go on with resume={self.folder}" if saved else "no checkpoint was written yet"
                print(f"stopped; {remedy}", file=sys.stderr)
            # Lightning ends with 1 after a Ctrl-C that came before the training listened to signals.
            raise SystemExit(130 if stop.code == 1 else stop.code) from None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
            if self.resume is None or self.module.has_begun or isinstance(error, InputError):
                raise
            raise InputError(
                f"{self.resume} can't be resumed ({type(error).__name__}: {str(error)[:200]}); give another "
                "checkpoint of the run, or start_from= to begin a training with its weights and words"
            ) from error

    def write_caption_ids(self) -> None:
        """Write which captions were used, as lists of the annotation file's own ids by split."""
        ids = {
            split: [caption_id for record in records for caption_id in record.caption_ids]
            for split, records in self.data.records.items()
        }
        if any(ids.values()):
            write_text(self.folder / "caption_ids.json", json.dumps(ids) + "\n")

    def write_summary(self, *, finished: bool) -> None:
        """Write `summary.json`: every epoch's validation, and the one of the best CIDEr-D.

        If that is the last one so far, `validation.csv` is written too: its captions with their CIDEr-D.
        """
        history = self.module.history
        best = best_epoch(history)
        summary = {
            "name": self.name,
            "finished": finished,
            "parameters": self.num_parameters,
            "scored": str(self.module.tokens),
            "best": best,
            "epochs": history,
        }
        write_text(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
        if best and best is history[-1] and self.module.scored_captions:
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["epoch", "image_id", "caption", "cider_d"])
            writer.writerows(
                [int(best["epoch"]), image_id, caption, round(100 * score, 4)]
                for image_id, caption, score in self.module.scored_captions
            )
            write_text(self.folder / "validation.csv", text.getvalue())


class _WriteSummary(Callback):
    """Writes the summary after every epoch, so that a run that is killed can be compared."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run.write_summary(finished=False)
