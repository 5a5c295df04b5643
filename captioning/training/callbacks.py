"""Lightning callbacks of a training run: captions while it learns, and a trace of tensor shapes."""

import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from captioning.data import Annotated, Batch, CaptionDataModule, ImageDataset
from captioning.decoding import Decoded
from captioning.features import read_image
from captioning.training.module import CaptioningModule

log = logging.getLogger(__name__)


class SampleCaptions(Callback):
    """Captions a few images after every epoch; their attention pictures go to TensorBoard.

    Args:
        num_images: how many of each split.
        draw: draws a picture's attention, called as `captioning.evaluation.attention_figure`.
    """

    def __init__(self, *, num_images: int, draw: Callable[..., Any]) -> None:
        self.num_images, self.draw = num_images, draw
        self._warned = False

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the captions of both splits."""
        data = getattr(trainer, "datamodule", None)
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(data, CaptionDataModule):
            return
        assert isinstance(pl_module, CaptioningModule)
        for split in ("train", "val"):
            images = data.images(split)
            count = min(self.num_images, len(images))
            rows = [len(images) * i // count for i in range(count)]  # spread over the split, always the same
            decoded = pl_module.decode(move_batch(images.__getitems__(rows), pl_module.device))
            for position, row in enumerate(rows):
                record = images.records[row]
                words = pl_module.vocabulary.split(decoded.tokens[position].tolist())
                log.info("  %s %s: %s", split, record.image_id, " ".join(words))
                self._log_pictures(
                    trainer, images, record, f"{split}/{record.image_id}", words, decoded, position
                )

    def _log_pictures(
        self,
        trainer: Trainer,
        images: ImageDataset,
        record: Annotated,
        tag: str,
        words: list[str],
        decoded: Decoded,
        position: int,
    ) -> None:
        """Draw where the model looked, for the loggers that show pictures."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers or not words or decoded.attention is None:
            return
        try:
            figure = self.draw(
                read_image(record.path),
                words,
                decoded.attention[position, : len(words)].float().cpu().numpy(),
                boxes=images.cache.boxes(record.image_id) if images.cache.has_boxes else None,
                grid=images.cache.grid,
                image_size=images.cache.provenance.get("image_size"),
            )
        except Exception as error:  # a picture that cannot be drawn must never end a training
            if not self._warned:
                log.warning("no attention picture of %s in the log: %s", record.path, error)
            self._warned = True
            return
        for logger in loggers:
            logger.experiment.add_figure(tag, figure, trainer.current_epoch)
        figure.clear()


class TraceShapes(Callback):
    """Logs, once, every module's input and output shapes for the first batch: the post's debugging aid."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Run one training batch through the model with a hook on every module."""
        assert isinstance(pl_module, CaptioningModule)
        assert isinstance(trainer.train_dataloader, torch.utils.data.DataLoader)
        batch = move_batch(next(iter(trainer.train_dataloader)), pl_module.device)
        for line in trace_shapes(pl_module, batch):
            log.info(line)


def trace_shapes(module: CaptioningModule, batch: Batch) -> list[str]:
    """List "name (class): input shapes -> output shapes" in the order of the calls, each module once."""
    lines: dict[str, str] = {}
    handles = []
    for name, part in module.model.named_modules():

        def record(part: nn.Module, inputs: Any, outputs: Any, name: str = name or "model") -> None:
            lines.setdefault(name, f"{name} ({type(part).__name__}): {_shapes(inputs)} -> {_shapes(outputs)}")

        handles.append(part.register_forward_hook(record))
    devices = [module.device] if module.device.type == "cuda" else []
    state = module.objective.state_dict()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            module.objective(module.model, batch)
    finally:
        module.objective.load_state_dict(state)  # some objectives keep an average over the batches
        for handle in handles:
            handle.remove()
    return list(lines.values())


def _shapes(tree: Any) -> str:
    if isinstance(tree, torch.Tensor):
        return "×".join(map(str, tree.shape)) or "scalar"
    if isinstance(tree, (tuple, list)):
        return ", ".join(filter(None, map(_shapes, tree)))
    return ""


def move_batch(batch: Batch, device: torch.device) -> Batch:
    """Move a batch's tensors to a device."""
    mask = batch.mask.to(device) if batch.mask is not None else None
    return batch._replace(features=batch.features.to(device), mask=mask, tokens=batch.tokens.to(device))
