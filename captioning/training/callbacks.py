"""What the trainer gets beside the module: safe checkpoints, captions while it learns, a trace of shapes."""

import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from PIL import Image
from torch import nn

from captioning.data import Batch, CaptionDataModule, ImageDataset
from captioning.errors import InputError
from captioning.features import read_image
from captioning.module import CaptioningModule
from captioning.visualise import attention_figure, close, grid_margin

log = logging.getLogger(__name__)


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it: a kill leaves the old one or the new one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file.

        Raises:
            InputError: the disk is full; earlier checkpoints are untouched.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f"{path.name}.partial")
        try:
            with open(fresh, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns ENOSPC into a RuntimeError
            fresh.unlink(missing_ok=True)
            full = getattr(error, "errno", None) == errno.ENOSPC or isinstance(error, RuntimeError)
            if not full:
                raise
            raise InputError(
                f"{path} could not be written ({error}); is the disk full? Earlier checkpoints are "
                "untouched: make room and go on with resume=<run folder>"
            ) from error


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best epoch as `best.ckpt`; a resumed run in a folder of its own inherits the best one so far.

    Lightning takes up the best score only where the folder is the same.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score, and copy its file here."""
        super().load_state_dict(state_dict)
        old, score = Path(state_dict["best_model_path"] or "."), state_dict["best_model_score"]
        if self.dirpath is None or state_dict["dirpath"] == self.dirpath or not old.is_file():
            return
        new = Path(self.dirpath) / old.name
        new.parent.mkdir(parents=True, exist_ok=True)
        fresh = new.with_name(f"{new.name}.partial")
        shutil.copyfile(old, fresh)
        os.replace(fresh, new)
        self.best_model_path = self.kth_best_model_path = str(new)
        self.best_model_score = self.kth_value = score
        self.best_k_models = {str(new): score}


class SampleCaptions(Callback):
    """Captions a few images after every epoch; their attention pictures go to TensorBoard.

    Args:
        images: how many of each split.
    """

    def __init__(self, *, images: int) -> None:
        self.images = images
        self._warned = False

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the captions."""
        datamodule = getattr(trainer, "datamodule", None)
        if (
            trainer.sanity_checking
            or not isinstance(datamodule, CaptionDataModule)
            or not trainer.is_global_zero
        ):
            return
        assert isinstance(pl_module, CaptioningModule)
        for split in ("train", "val"):
            data = datamodule.images(split)
            count = min(self.images, len(data))
            rows = [
                len(data) * i // count for i in range(count)
            ]  # spread over the split, the same every epoch
            self._show(trainer, pl_module, split, data, rows)

    def _show(
        self, trainer: Trainer, module: CaptioningModule, split: str, data: ImageDataset, rows: list[int]
    ) -> None:
        batch = data.__getitems__(rows)
        decoded = module.decode(_moved(batch, module.device))
        for position, row in enumerate(rows):
            words = module.vocabulary.split(decoded.tokens[position].tolist())
            record = data.records[row]
            log.info("  %s %s: %s", split, record.image_id, " ".join(words))
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger) and decoded.attention is not None and words:
                    attention = decoded.attention[position, : len(words)].float().cpu().numpy()
                    image = self._picture(record.path)
                    if image is None:
                        continue
                    figure = self._figure(module, data, record.image_id, image, words, attention)
                    logger.experiment.add_figure(f"{split}/{record.image_id}", figure, trainer.current_epoch)
                    close(figure)

    def _picture(self, path: Path) -> Image.Image | None:
        """Read a picture to draw attention on; training needs only its features, and goes on without."""
        try:
            return read_image(path)
        except InputError as error:
            if not self._warned:
                log.warning("no attention pictures in the log: %s", error)
            self._warned = True
            return None

    @staticmethod
    def _figure(
        module: CaptioningModule,
        data: ImageDataset,
        image_id: str,
        image: Image.Image,
        words: list[str],
        attention: Any,
    ) -> Any:
        if data.cache.has_boxes:
            return attention_figure(image, words, attention, data.cache.boxes(image_id))
        seen = module.description["features"]["extractor"]["image_size"][0]
        return attention_figure(image, words, attention, margin=grid_margin(seen, attention.shape[1]))


class TraceShapes(Callback):
    """Prints, once, every module's input and output shapes for the first batch: the post's debugging aid."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run one training batch through the model with a hook on every module."""
        assert isinstance(pl_module, CaptioningModule) and isinstance(
            trainer.train_dataloader, torch.utils.data.DataLoader
        )
        batch = _moved(next(iter(trainer.train_dataloader)), pl_module.device)
        for line in trace_shapes(pl_module, batch):
            log.info(line)


def trace_shapes(module: CaptioningModule, batch: Batch) -> list[str]:
    """List "name (class): input shapes -> output shapes" in the order of the calls, each module once."""
    lines: dict[str, str] = {}
    handles = []
    for name, part in module.model.named_modules():

        def note(part: nn.Module, given: Any, came: Any, name: str = name or "model") -> None:
            lines.setdefault(name, f"{name} ({type(part).__name__}): {_shapes(given)} -> {_shapes(came)}")

        handles.append(part.register_forward_hook(note))
    devices = [module.device] if module.device.type == "cuda" else []
    state = module.objective_state()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            module.objective(module.model, batch)
    finally:
        module.restore_objective(state)  # some keep count of the batches they have seen
        for handle in handles:
            handle.remove()
    return list(lines.values())


def _shapes(tree: Any) -> str:
    if isinstance(tree, torch.Tensor):
        return "×".join(map(str, tree.shape)) or "scalar"
    if isinstance(tree, (tuple, list)):
        return ", ".join(filter(None, map(_shapes, tree)))
    return ""


def _moved(batch: Batch, device: torch.device) -> Batch:
    mask = batch.mask.to(device) if batch.mask is not None else None
    return batch._replace(features=batch.features.to(device), mask=mask, tokens=batch.tokens.to(device))
