"""A training run: its parts, its folder, and what it leaves there beside the checkpoints."""

import json
import logging
import sys
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch import Trainer

from captioning.data import CaptionDataModule
from captioning.files import write_text
from captioning.training.module import CaptioningModule

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """Everything one training needs; `resume` is the checkpoint to go on from, if any."""

    name: str
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
        if self.trainer.is_global_zero:
            self.write_caption_ids()
        self._fit()
        if self.trainer.is_global_zero:
            self.write_summary()
        best: Any = self.trainer.checkpoint_callback
        if best is None or best.best_model_score is None:
            return None
        log.info("best %s %.3f: %s", best.monitor, best.best_model_score, best.best_model_path)
        return float(best.best_model_score)

    @property
    def num_parameters(self) -> int:
        """Number of trained and frozen parameters of the model."""
        return sum(parameter.numel() for parameter in self.module.parameters())

    def _fit(self) -> None:
        try:
            self.trainer.fit(self.module, datamodule=self.data, ckpt_path=self.resume, weights_only=True)
        except SystemExit:  # how Lightning ends after Ctrl-C
            if self.trainer.interrupted:
                print(
                    f"stopped; continue after the last whole epoch with resume={self.folder}", file=sys.stderr
                )
                raise SystemExit(130) from None
            raise

    def write_caption_ids(self) -> None:
        """Write which captions were used, as lists of the annotation file's own ids by split."""
        ids = {
            split: [caption_id for record in records for caption_id in record.caption_ids]
            for split, records in self.data.records.items()
        }
        if any(ids.values()):
            write_text(self.folder / "caption_ids.json", json.dumps(ids) + "\n")

    def write_summary(self) -> None:
        """Write `summary.json`: every epoch's validation, and the one of the best CIDEr-D."""
        history = self.module.history
        scored = [epoch for epoch in history if "cider_d" in epoch]
        best = max(scored, key=lambda epoch: epoch["cider_d"], default=None)
        summary = {"name": self.name, "parameters": self.num_parameters, "best": best, "epochs": history}
        write_text(self.folder / "summary.json", json.dumps(summary, indent=1) + "\n")
