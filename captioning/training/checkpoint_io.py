"""How Lightning writes checkpoints here: whole or not at all, and the best one follows a resumed run."""

import errno
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from captioning.errors import InputError
from captioning.files import atomic_write


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it: a kill leaves the old one or the new one."""

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
            raise InputError(
                f"{path} could not be written ({error}); is the disk full? Earlier checkpoints are "
                "untouched: make room and go on with resume=<run folder>"
            ) from error


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best epoch as `best.ckpt`; a resumed run in a folder of its own inherits the best one so far.

    Lightning restores the best score only where the folder is the same.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best score, and copy its file into this run."""
        super().load_state_dict(state_dict)
        old, score = Path(state_dict["best_model_path"] or "."), state_dict["best_model_score"]
        if self.dirpath is None or state_dict["dirpath"] == self.dirpath or not old.is_file():
            return
        new = Path(self.dirpath) / old.name
        with atomic_write(new) as temporary:
            shutil.copyfile(old, temporary)
        self.best_model_path = self.kth_best_model_path = str(new)
        self.best_model_score = self.kth_value = score
        self.best_k_models = {str(new): score}
