"""Fills the cache with what a network sees in every image, or with what published files say of it.

Networks see rows in batches that start at multiples of the batch size, whatever is already there. A resumed
run therefore sees each image in the same company as an uninterrupted one, and rounding gives the same bits.
"""

import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioning.errors import InputError
from captioning.features.cache import Row, verify
from captioning.features.images import read_image
from captioning.features.writer import CacheWriter

log = logging.getLogger(__name__)


class Seen(NamedTuple):
    """What an extractor saw in B pictures.

    features: (B, R, D); of a picture with fewer regions the last ones are zero.
    counts: (B,) real regions, or None where every picture has all R.
    boxes: (B, R, 4) x1 y1 x2 y2 as fractions of width and height, or None for a grid.
    scores: (B, R) confidence of the detector, 0 to 1, or None for a grid.
    """

    features: Tensor
    counts: Tensor | None = None
    boxes: Tensor | None = None
    scores: Tensor | None = None

    @classmethod
    def of(cls, output: "Tensor | Seen") -> "Seen":
        """Take the output of any extractor; a plain tensor is the features of a grid."""
        return output if isinstance(output, Seen) else cls(output)

    @property
    def mask(self) -> Tensor | None:
        """True at real regions: (B, R), or None where all are."""
        if self.counts is None:
            return None
        return torch.arange(self.features.shape[1], device=self.counts.device) < self.counts[:, None]

    def rows(self) -> list[Row]:
        """Split into what the cache stores, one row a picture."""
        features, counts, boxes, scores = (
            None if part is None else part.float().cpu().numpy() for part in self
        )
        assert features is not None
        return [
            Row(
                features[position],
                features.shape[1] if counts is None else int(counts[position]),
                None if boxes is None else boxes[position],
                None if scores is None else scores[position],
            )
            for position in range(len(features))
        ]


class Extractor(Protocol):
    """A network that sees pictures: `Backbone` or `RegionDetector`."""

    provenance: dict
    has_boxes: bool

    def transform(self, image: Image.Image) -> Tensor:
        """Prepare a picture for the network."""

    def shape(self) -> tuple[int, int]:
        """Tell (R, D)."""

    def to(self, device: torch.device) -> "Extractor":
        """Move to a device."""

    def __call__(self, images: Tensor) -> Tensor | Seen:
        """See pictures as regions."""


@runtime_checkable
class RowFiles(Protocol):
    """Files of features that somebody else made: `BottomUpFiles`."""

    provenance: dict
    has_boxes: bool

    def shape(self) -> tuple[int, int]:
        """Tell (R, D)."""

    def read_rows(self, wanted: Container[str]) -> Iterator[tuple[str, Row]]:
        """Read the rows of wanted images, in the order of the files, by file name without suffix.

        `wanted` may change between two rows.
        """


class Report(NamedTuple):
    """What an extraction did."""

    total: int
    done_before: int
    done_now: int
    unreadable: list[tuple[str, str]]
    seconds: float


Contents = tuple[list[int], list[Row | str]]  # row numbers, and of each the content or why there is none


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
    extractor: Extractor | RowFiles,
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
    with _open_writer(extractor, images, path, autocast) as writer:
        if repair:
            writer.forget([image_id for image_id, _ in verify(writer.target).corrupt])
        done_before = len(images) - len(writer.to_do)
        if isinstance(extractor, RowFiles):
            made, total = _read(extractor, writer, batch_size), len(writer.to_do)
        else:
            batches = _batches(writer.to_do, len(writer.image_ids), batch_size)
            paths = [images.get(image_id, Path()) for image_id in writer.image_ids]
            loader = _loader(paths, extractor, batches, num_workers)
            made, total = _see(extractor, loader, autocast), sum(map(len, batches))
        unreadable = [
            failure for rows, contents in progress(made, total) for failure in _store(writer, rows, contents)
        ]
        writer.finish()
    done_now = len(images) - len(unreadable) - done_before
    return Report(len(images), done_before, done_now, unreadable, time.perf_counter() - started)


def _open_writer(
    extractor: Extractor | RowFiles, images: Mapping[str, Path], path: str | Path, autocast: bool
) -> CacheWriter:
    provenance, sizes = dict(extractor.provenance), None
    if not isinstance(extractor, RowFiles):
        provenance["precision"] = "bfloat16" if autocast else "float32"
        sizes = [_size_of(image) for image in images.values()]
    options: dict[str, Any] = {"with_boxes": extractor.has_boxes, "sizes": sizes}
    writer = CacheWriter(path, list(images), extractor.shape(), provenance, **options)
    if changed := writer.changed:
        told = "%d pictures have changed since their features were made, first %s; they are made again"
        log.warning(told, len(changed), changed[0])
    return writer


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # the reader will say what is wrong
        return 0


def _see(extractor: Extractor, loader: Iterable, autocast: bool) -> Iterator[Contents]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor = extractor.to(device)
    for rows, pictures, errors in loader:
        contents: list[Row | str] = [errors.get(row, "") for row in rows]
        if len(errors) < len(rows):
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                seen = Seen.of(extractor(pictures.to(device))).rows()
            contents = [errors.get(row, content) for row, content in zip(rows, seen, strict=True)]
        yield rows, contents


def _read(files: RowFiles, writer: CacheWriter, batch_size: int) -> Iterator[Contents]:
    """Read from the files what is to do; what they lack comes last, as an error text."""
    # Published files name images by number, our readers some of them by file name.
    waiting = {Path(writer.image_ids[row]).stem: int(row) for row in writer.to_do}
    # Taking a row off the list while the files are read makes the first of two equal ids win.
    found = ((waiting.pop(image_id), content) for image_id, content in files.read_rows(waiting))
    while batch := list(islice(found, batch_size)):
        yield [row for row, _ in batch], [content for _, content in batch]
    yield list(waiting.values()), ["none of the files has this image"] * len(waiting)


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


def _store(writer: CacheWriter, rows: list[int], contents: list[Row | str]) -> list[tuple[str, str]]:
    """Write what is still to do of a batch; returns ids and error texts of what has no content."""
    to_do, failures = set(writer.to_do.tolist()), []
    for row, content in zip(rows, contents, strict=True):
        if row not in to_do:
            continue  # seen again only as company of its neighbours
        if isinstance(content, str):
            writer.mark_unreadable(row)
            failures.append((writer.image_ids[row], content))
            continue
        try:
            writer.write(row, content)
        except InputError as error:
            raise InputError(f"image {writer.image_ids[row]}: {error}") from error
    writer.flush()
    return failures
