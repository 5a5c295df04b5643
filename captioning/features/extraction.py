"""Runs a backbone over every image once and fills the cache; a resumed run gives the same file.

Rows are computed in batches that start at multiples of the batch size, whatever is already there. A resumed
run therefore sees each image in the same company as an uninterrupted one, and rounding gives the same bits.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioning.errors import InputError
from captioning.features.cache import Row, verify
from captioning.features.images import read_image
from captioning.features.writer import CacheWriter


class Extractor(Protocol):
    """What `extract` needs: `Backbone`, or the detector of `regions`."""

    provenance: dict

    def transform(self, image: Image.Image) -> Tensor:
        """Prepare a picture for the network."""

    def shape(self) -> tuple[int, int]:
        """Tell (R, D)."""

    def to(self, device: torch.device) -> "Extractor":
        """Move to a device."""

    def __call__(self, images: Tensor) -> Tensor:
        """See pictures as regions."""


class Report(NamedTuple):
    """What an extraction did."""

    total: int
    done_before: int
    done_now: int
    unreadable: list[tuple[str, str]]
    seconds: float


class _Pictures(Dataset):
    """Decodes pictures in loader workers; one that can't be read comes out as its error text."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        try:
            return row, self.transform(read_image(self.paths[row]))
        except InputError as error:
            return row, str(error)


def extract(
    extractor: Extractor,
    images: Mapping[str, Path],
    path: str | Path,
    *,
    batch_size: int,
    num_workers: int,
    autocast: bool = True,
    repair: bool = False,
    progress: Callable[[Iterable, int], Iterable] = lambda batches, total: batches,
) -> Report:
    """Fill the cache at `path` with the features of all images.

    Args:
        extractor: on the CPU; moves to the GPU when there is one.
        images: path of each image by its id.
        path: of the HDF5 file.
        batch_size: images a forward pass; part of what makes a resumed run equal to an unbroken one.
        num_workers: processes that decode pictures.
        autocast: compute in bfloat16, about twice as fast on a CPU that has it.
        repair: first reread an existing file and count its corrupt rows as still to do.
        progress: wraps the iterable of batches; gets the number of images still to do.

    Raises:
        InputError: no images, or see `CacheWriter`.
    """
    if not images:
        raise InputError("there is no image to extract features of; check the data=... options")
    started = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        extractor = extractor.to(device)
        provenance = {**extractor.provenance, "precision": "bfloat16" if autocast else "float32"}
        with CacheWriter(path, list(images), extractor.shape(), provenance) as writer:
            if repair:
                writer.forget([image_id for image_id, _ in verify(writer.target).corrupt])
            done_before = len(images) - len(writer.to_do)
            unreadable: list[tuple[str, str]] = []
            batches = _batches(writer.to_do, len(images), batch_size)
            loader = _loader(list(images.values()), extractor, batches, num_workers)
            for rows, pictures, errors in progress(loader, sum(map(len, batches))):
                _store(writer, extractor, rows, pictures.to(device), errors)
                unreadable += [(writer.image_ids[row], text) for row, text in errors.items()]
            writer.finish()
    done_now = len(images) - len(unreadable) - done_before
    return Report(len(images), done_before, done_now, unreadable, time.perf_counter() - started)


def _batches(to_do: np.ndarray, total: int, batch_size: int) -> list[range]:
    """Whole batches, on the grid of the batch size, that hold a row still to do."""
    starts = sorted({int(row) // batch_size * batch_size for row in to_do})
    return [range(start, min(start + batch_size, total)) for start in starts]


def _loader(paths: list[Path], extractor: Extractor, batches: list[range], num_workers: int) -> Iterable:
    dataset = _Pictures(paths, extractor.transform)
    rows = [list(batch) for batch in batches]
    return DataLoader(dataset, batch_sampler=rows, num_workers=num_workers, collate_fn=_collate)


def _collate(items: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor, dict[int, str]]:
    errors = {row: item for row, item in items if isinstance(item, str)}
    readable = [item for _, item in items if isinstance(item, Tensor)]
    blank = torch.zeros_like(readable[0]) if readable else torch.zeros(0)
    # An unreadable picture keeps its place as a black one, so that its neighbours' batch stays the same.
    pictures = [item if isinstance(item, Tensor) else blank for _, item in items]
    return [row for row, _ in items], torch.stack(pictures), errors


def _store(
    writer: CacheWriter, extractor: Extractor, rows: list[int], pictures: Tensor, errors: Mapping[int, str]
) -> None:
    to_do = set(writer.to_do.tolist())
    features = extractor(pictures).float().cpu().numpy() if len(errors) < len(rows) else None
    for position, row in enumerate(rows):
        if row in errors:
            writer.mark_unreadable(row)
        elif row in to_do and features is not None:
            try:
                writer.write(row, Row(features[position], features.shape[1]))
            except InputError as error:
                raise InputError(f"image {writer.image_ids[row]}: {error}") from error
    writer.flush()
