"""Lightning callbacks that show how a training goes: captions and attention pictures, shapes of tensors.

Nothing that only shows ends a training or changes it: see `tolerate`.
"""

import functools
import io
import logging
from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from PIL import Image
from torch import nn

from captioning.data import Annotated, Batch, CaptionDataModule, ImageDataset
from captioning.decoding import Decoded
from captioning.features import read_image
from captioning.training.module import CaptioningModule
from captioning.training.samples import Sample, log_samples

log = logging.getLogger(__name__)


HOOKS = [name for name in vars(Callback) if name.startswith("on_")]
LOGGING = ["log_metrics", "log_hyperparams", "log_graph", "save", "after_save_checkpoint", "finalize"]


def tolerate(part: Any, methods: Iterable[str]) -> None:
    """Make a callback or logger harmless: what fails in it is left out, and reported the first time.

    Args:
        part: an object; its methods are replaced.
        methods: names of those that show something and return nothing.
    """
    reported = False

    def guard(name: str, method: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(method)
        def guarded(*values: Any, **options: Any) -> None:
            nonlocal reported
            try:
                method(*values, **options)
            except Exception as error:
                if not reported:
                    log.warning(
                        "%s.%s failed (%s: %s); the training goes on without it",
                        *(type(part).__name__, name, type(error).__name__, error),
                    )
                reported = True

        return guarded

    for name in methods:
        setattr(part, name, guard(name, getattr(part, name)))


class ProgressBar(RichProgressBar):
    """Lightning's, without the logger's version, which is a folder's name here."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class SampleCaptions(Callback):
    """Captions a few images after every epoch, once its checkpoint is written; every logger gets them.

    With averaged weights they are of the weights in training, unlike `val/*` and the checkpoints.

    Args:
        num_images: how many of each split; 0 for none.
        draw: draws a picture's attention, called as `captioning.evaluation.attention_figure`.
    """

    def __init__(self, *, num_images: int, draw: Callable[..., Any]) -> None:
        self.num_images, self.draw = num_images, draw
        self._warned = False
        self._epoch: int | None = None  # that was validated last, until its captions are shown

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the epoch; its checkpoint is written before anything is shown."""
        if not trainer.sanity_checking:
            self._epoch = trainer.current_epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, pl_module)

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the captions of both splits."""
        epoch, self._epoch = self._epoch, None
        data = getattr(trainer, "datamodule", None)
        if (
            epoch is None
            or not self.num_images
            or not trainer.is_global_zero
            or not isinstance(data, CaptionDataModule)
        ):
            return
        assert isinstance(pl_module, CaptioningModule)
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        was_training = pl_module.training
        pl_module.eval()
        try:
            with torch.random.fork_rng(devices):  # a decoder that samples changes nothing of the training
                self._caption(trainer, pl_module, data, epoch)
        finally:
            pl_module.train(was_training)

    def _caption(
        self, trainer: Trainer, pl_module: CaptioningModule, data: CaptionDataModule, epoch: int
    ) -> None:
        samples = []
        for split in ("train", "val"):
            images = data.images(split)
            count = min(self.num_images, len(images))
            rows = [len(images) * i // count for i in range(count)]  # spread over the split, always the same
            decoded = pl_module.decode(move_batch(images.__getitems__(rows), pl_module.device))
            for position, row in enumerate(rows):
                record = images.records[row]
                ids = decoded.tokens[position].tolist()
                text = pl_module.vocabulary.decode(ids)
                log.info("  %s %s: %s", split, record.image_id, text)
                picture = self._draw(images, record, pl_module.vocabulary.pieces(ids), decoded, position)
                samples.append(Sample(split, record.image_id, text, picture))
        log_samples(trainer.loggers, samples, epoch=epoch)

    def _draw(
        self, images: ImageDataset, record: Annotated, words: list[str], decoded: Decoded, position: int
    ) -> Image.Image | None:
        """Draw where the model looked; None where there is no attention, or no photograph."""
        if not words or decoded.attention is None:
            return None
        try:
            figure = self.draw(
                read_image(record.path),
                words,
                decoded.attention[position, : len(words)].float().cpu().numpy(),
                boxes=images.cache.boxes(record.image_id) if images.cache.has_boxes else None,
                grid=images.cache.grid,
                image_size=images.cache.provenance.get("image_size"),
            )
            figure.savefig(file := io.BytesIO(), format="jpeg", dpi=80)
            figure.clear()
            return Image.open(file)
        except Exception as error:  # one line; the next picture may be drawn
            if not self._warned:
                log.warning("no attention picture of %s in the log: %s", record.path, error)
            self._warned = True
            return None


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
    tensors = ("features", "mask", "tokens", "image_rows")
    moved = {name: part.to(device) for name in tensors if (part := getattr(batch, name)) is not None}
    return batch._replace(**moved)
