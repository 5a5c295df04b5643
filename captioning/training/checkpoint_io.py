"""How checkpoints are written here: whole or not at all, also inside an epoch and when a signal ends the run.

A run keeps `best.ckpt`, where asked one file an epoch, and `last.ckpt`, from which `resume=` goes on bit for
bit. What a checkpoint says of files is never followed: a stranger's would name any file of the user's.
"""

import errno
import logging
import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from captioning import checkpoint as checkpoints
from captioning.errors import InputError
from captioning.files import atomic_write
from captioning.training.signals import StopRequest

log = logging.getLogger(__name__)

_SECONDS = {"s": 1, "m": 60, "h": 3600}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it: a kill leaves the old one or the new one.

    Attributes:
        num_written: number of files written.
    """

    def __init__(self) -> None:
        self.num_written = 0

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file.

        Raises:
            InputError: the disk is full; earlier checkpoints are untouched.
        """
        try:
            with atomic_write(path) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            # torch's zip writer turns ENOSPC into a RuntimeError.
            if getattr(error, "errno", None) != errno.ENOSPC and not isinstance(error, RuntimeError):
                raise
            remedy = _remedy(Path(path))
            raise InputError(
                f"{path} could not be written ({error}); is the disk full? Make room and {remedy}"
            ) from error
        self.num_written += 1

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        """Read a checkpoint to resume, without the paths that Lightning's callbacks keep in it.

        Raises:
            InputError: see `checkpoint.read` and `checkpoint.check_resumable`.
        """
        content = checkpoints.read(path)
        checkpoints.check_resumable(content, path)
        for state in content["callbacks"].values():
            if isinstance(state, dict) and "dirpath" in state:  # a ModelCheckpoint of whatever class
                state.update(dict.fromkeys(_PATHS, ""), best_k_models={})
        return content


def _remedy(path: Path) -> str:
    """Say how a run goes on whose checkpoint at `path` could not be written: from one that is there."""
    there = (path.with_name(name) for name in (checkpoints.LAST, checkpoints.BEST))
    found = next((checkpoint for checkpoint in there if checkpoint.is_file()), None)
    return f"go on with resume={found}, which is untouched" if found else "run the command again"


_PATHS = ("dirpath", "best_model_path", "kth_best_model_path", "last_model_path")


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best epoch as `best.ckpt`; a resumed run inherits the one beside its starting point.

    Of epochs that score the same, as all do by CIDEr-D on a single image, the one with the lowest loss is the
    best.
    """

    def check_monitor_top_k(self, trainer: Trainer, current: torch.Tensor | None = None) -> bool:
        """Return whether the epoch that has just been validated is the best so far."""
        if super().check_monitor_top_k(trainer, current):
            return True
        history: Any = trainer.lightning_module.history
        return bool(current == self.best_model_score) and best_epoch(history) is history[-1]

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the best score, and copy its file into this run."""
        state = checkpoint["callbacks"].get(self.state_key)
        score = state.get("best_model_score") if isinstance(state, dict) else None
        best = Path(str(trainer.ckpt_path)).with_name(checkpoints.BEST)
        if not isinstance(score, torch.Tensor) or score.numel() != 1 or not best.is_file():
            return
        assert self.dirpath is not None
        new = Path(self.dirpath) / checkpoints.BEST
        try:
            if trainer.is_global_zero:
                copy_checkpoint(best, new)
        except InputError as error:
            log.warning("the best epoch so far is not inherited: %s", error)
            return
        self.best_model_path = self.kth_best_model_path = str(new)
        self.best_model_score = self.kth_value = score.float().reshape(()).nan_to_num(float("-inf"))
        self.best_k_models = {str(new): self.best_model_score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: `on_load_checkpoint` knows where the checkpoint lies, the state only where it lay."""


def best_epoch(history: Sequence[dict[str, float]]) -> dict[str, float] | None:
    """Return the validation with the highest CIDEr-D, and of equal ones the lowest loss; None of none."""
    scored = [epoch for epoch in history if "cider_d" in epoch]
    return min(scored, key=lambda epoch: (-epoch["cider_d"], epoch.get("nll", math.inf)), default=None)


class EpochCheckpoint(ModelCheckpoint):
    """Keeps the last epoch as `last.ckpt`, and every epoch where asked; a resumed run does so from then on.

    Args:
        keep_all: whether every epoch has a file of its own.
        filename: of these files.
        options: of Lightning's callback.
    """

    def __init__(self, *, keep_all: bool, filename: str, **options: Any) -> None:
        # Lightning writes the last one beside others only; alone it is the newest of one name.
        name = filename if keep_all else Path(checkpoints.LAST).stem
        super().__init__(filename=name, save_top_k=-1 if keep_all else 1, save_last=keep_all, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: no epoch's file depends on those before."""


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy a checkpoint whole or not at all; to itself, do nothing.

    Raises:
        InputError: it is none; a link in a stranger's folder may lead to any file.
    """
    if target.exists() and target.samefile(source):
        return
    checkpoints.read(source)
    with atomic_write(target) as temporary:
        temporary.write_bytes(source.read_bytes())


class MidEpochCheckpoint(Checkpoint):
    """Writes `last.ckpt` between two batches: at intervals, and where a signal asks the run to stop.

    A run that goes on from there equals one that was never stopped. SIGTERM, SIGUSR1 and Ctrl-C end it with
    128 plus their number, after the batch that is under way; a second signal ends it at once. After a
    checkpoint that was written during validation, validation begins anew.

    Args:
        dirpath: the folder of the checkpoints.
        every: `30s`, `10m` or `2h` since the last checkpoint, or `500steps`; None for signals only.
    """

    def __init__(self, *, dirpath: str | Path, every: str | None = None) -> None:
        self.path = Path(dirpath) / checkpoints.LAST
        self.seconds, self.steps = parse_interval(every)
        self.request = StopRequest()
        self._saved = 0.0  # time of the last checkpoint
        self._validates = False  # whether a checkpoint is written before a validation has ended

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen to signals; Lightning gives them back at its end."""
        self.request.listen()
        self._saved = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._saved = time.monotonic()  # the epoch before has its own file

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if it is time or a signal has come."""
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():  # gradients that wait for their step are in no checkpoint
            return
        stops, is_due = self._decide(trainer, batch=True)
        assert trainer.fit_loop._data_fetcher is not None
        validates = loop._should_check_val_fx(trainer.fit_loop._data_fetcher)
        # After the last batch without validation, the epoch's own file comes next.
        if (stops or is_due) and (validates or not trainer.is_last_batch):
            self._save(trainer, validates)
            self._stop_if(stops, trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Write a checkpoint if a signal has come."""
        stops, _ = self._decide(trainer)
        if stops and not trainer.sanity_checking:
            self._save(trainer, True)
        self._stop_if(stops, trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after the epoch's own checkpoint if a signal has come; Lightning calls this last."""
        stops, _ = self._decide(trainer)
        self._stop_if(stops, trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a run that goes on from before the end of a validation begin with that validation."""
        if self._validates:
            loops = checkpoint["loops"]["fit_loop"]
            # What Lightning takes for a validation whose first batch was under way.
            for count in (loops["epoch_loop.batch_progress"][part] for part in ("current", "total")):
                count["completed"] = count["processed"]
            for count in (loops["epoch_loop.val_loop.batch_progress"][part] for part in ("current", "total")):
                count.update(ready=1, started=1, processed=0, completed=0)

    def _decide(self, trainer: Trainer, *, batch: bool = False) -> tuple[bool, bool]:
        """Return whether to stop, and whether a checkpoint is due; the same in all processes."""
        stops = self.request.signal is not None
        elapsed = time.monotonic() - self._saved
        is_due = batch and (
            self.seconds is not None
            and elapsed >= self.seconds
            or self.steps is not None
            and trainer.global_step % self.steps == 0
        )
        if trainer.world_size > 1:
            stops = trainer.strategy.reduce_boolean_decision(stops, all=False)
            if batch and self.seconds is not None:  # their clocks differ, their steps do not
                is_due = trainer.strategy.reduce_boolean_decision(is_due, all=False)
        return stops, is_due

    def _save(self, trainer: Trainer, validates: bool) -> None:
        # The next batch will report weights that are not numbers; the file before may still hold good ones.
        if not all(torch.isfinite(parameter).all() for parameter in trainer.lightning_module.parameters()):
            return
        self._validates = validates
        try:
            trainer.save_checkpoint(self.path, weights_only=False)
        finally:
            self._validates = False
        self._saved = time.monotonic()

    def _stop_if(self, stops: bool, trainer: Trainer) -> None:
        if stops:  # the launcher of several processes takes another status of its children for a crash
            raise SystemExit(self.request.exit_status if trainer.is_global_zero else 0)


def parse_interval(text: str | None) -> tuple[float | None, int | None]:
    """Parse how often to save: seconds, or a number of steps.

    Raises:
        InputError: it has no unit, or is not positive.
    """
    if text is None:
        return None, None
    match = re.fullmatch(r"([1-9][0-9]{0,8}) ?(s|m|h|steps?)", str(text).strip())
    if not match:
        raise InputError(
            f"checkpoint_every={text} is not understood; give a time, such as 10m (or 30s, 2h), or a number "
            "of steps, such as 500steps"
        )
    number, unit = int(match[1]), match[2]
    return (None, number) if unit.startswith("step") else (float(number * _SECONDS[unit]), None)
