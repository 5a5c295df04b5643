"""What every logger gets beside its curves: the run's options, sample captions, and where the model looked.

TensorBoard and Weights & Biases show them in their pages; the CSV logger's stand as files in the run folder.
"""

import csv
import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from captioning.files import atomic_write, write_text

log = logging.getLogger(__name__)

_NOT_OPTIONS = ("words", "provenance", "format")  # of a checkpoint's metadata
_HEADINGS = ("split", "image", "caption")


class Sample(NamedTuple):
    """A caption of one image, and the picture of its attention where there is one."""

    split: str
    image_id: str
    text: str
    picture: Image.Image | None


def log_options(loggers: Sequence[Logger], metadata: Mapping[str, Any]) -> None:
    """Give the loggers the run's options as hyper-parameters.

    Args:
        loggers: of the trainer.
        metadata: plain values; what is not an option is left out.
    """
    options = {key: value for key, value in metadata.items() if key not in _NOT_OPTIONS}
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):  # its page of hyper-parameters needs a metric to show
            logger.log_hyperparams(options, {"val/cider_d": 0.0})
        else:
            logger.log_hyperparams(options)


def log_samples(loggers: Sequence[Logger], samples: Sequence[Sample], *, epoch: int) -> None:
    """Give sample captions and their pictures to every logger; one that fails leaves the others theirs."""
    for logger in loggers:
        for kind, write in _WRITERS.items():
            if isinstance(logger, kind):
                try:
                    write(logger, samples, epoch)
                except Exception as error:
                    log.warning("no sample captions for %s: %s", kind.__name__, error)


def _to_tensorboard(logger: Any, samples: Sequence[Sample], epoch: int) -> None:
    for sample in samples:
        tag = f"{sample.split}/{sample.image_id}"
        logger.experiment.add_text(tag, sample.text, epoch)
        if sample.picture:
            logger.experiment.add_image(tag, np.asarray(sample.picture), epoch, dataformats="HWC")


def _to_wandb(logger: Any, samples: Sequence[Sample], epoch: int) -> None:
    logger.log_text("samples/captions", ["epoch", *_HEADINGS], [[epoch, *sample[:3]] for sample in samples])
    for sample in samples:
        if sample.picture:
            key = f"samples/{sample.split}/{sample.image_id}"
            logger.log_image(key, [sample.picture], caption=[sample.text])


def _to_files(logger: Any, samples: Sequence[Sample], epoch: int) -> None:
    folder = Path(logger.log_dir) / "samples" / f"epoch{epoch:02d}"
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_HEADINGS, *(sample[:3] for sample in samples)])
    write_text(folder / "captions.csv", text.getvalue())
    for sample in samples:
        if sample.picture:
            name = re.sub(r"[^\w.-]", "_", f"{sample.split}-{sample.image_id}")  # ids may be paths
            with atomic_write(folder / f"{name}.jpg") as temporary:
                sample.picture.save(temporary, "JPEG", quality=90)


_WRITERS: dict[type[Logger], Callable[[Any, Sequence[Sample], int], None]] = {
    TensorBoardLogger: _to_tensorboard,
    WandbLogger: _to_wandb,
    CSVLogger: _to_files,
}
