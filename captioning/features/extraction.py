"""Fills the feature cache from a network that processes every image, or from published files of features.

Networks get rows in batches that start at multiples of the batch size, even where some rows exist already.
A resumed run therefore has each image in the same batch as an uninterrupted one, and rounding gives the
same bits.
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
from captioning.features.cache import FeatureCache, Row, verify
from captioning.features.frozen import FrozenExtractor
from captioning.features.images import read_image
from captioning.features.region_features import RegionFeatures
from captioning.features.writer import CacheWriter

log = logging.getLogger(__name__)


@runtime_checkable
class RowFiles(Protocol):
    """Files of features that somebody else made, such as `BottomUpFiles`."""

    provenance: dict[str, Any]
    has_boxes: bool
    num_regions: int
    feature_dim: int
    missing_weights: list[str]

    def read_rows(self, wanted: Container[str]) -> Iterator[tuple[str, Row]]:
        """Read the rows of the wanted images, by id without suffix; `wanted` may change between two rows."""


Extractor = FrozenExtractor | RowFiles
Batch = tuple[list[int], list[Row | str]]  # row numbers, and for each its content or why there is none


class Report(NamedTuple):
    """The outcome of an extraction; `unreadable` pairs image ids with error messages."""

    total: int
    done_before: int
    done_now: int
    unreadable: list[tuple[str, str]]
    seconds: float

    def log(self, path: str | Path) -> None:
        """Log how many images the cache at `path` got, and warn about the unreadable ones."""
        rate = self.done_now / max(self.seconds, 1e-9)
        log.info(
            "%s: %d images, %d were there already, %d extracted in %.0f s (%.1f per second)",
            path,
            self.total,
            self.done_before,
            self.done_now,
            self.seconds,
            rate,
        )
        if self.unreadable:
            listed = "\n".join(f"  {image_id}: {message}" for image_id, message in self.unreadable)
            log.warning("%d images could not be read and are left out:\n%s", len(self.unreadable), listed)


def extract_missing(
    build_extractor: Callable[[], Extractor], images: Mapping[str, Path], path: str | Path, **options: Any
) -> Report | None:
    """Extract what the cache at `path` lacks; the extractor is built only where it lacks something.

    Args:
        build_extractor: called without arguments.
        images: path of each image by its id.
        path: the HDF5 file.
        **options: of `extract`.

    Returns:
        None where the cache has every image. Images that were found to be unreadable are not tried again.

    Raises:
        InputError: see `extract`.
    """
    if Path(path).exists():
        cache = FeatureCache(path)
        if images.keys() <= {*cache.image_ids, *cache.unreadable}:
            return None
    return extract(build_extractor(), images, path, **options)


def extract(
    extractor: Extractor,
    images: Mapping[str, Path],
    path: str | Path,
    *,
    batch_size: int,
    num_workers: int,
    autocast: bool = True,
    repair: bool = False,
    progress: Callable[[Iterable[Batch], int], Iterable[Batch]] = lambda batches, total: batches,
) -> Report:
    """Fill the cache at `path` with the features of all images.

    Args:
        extractor: on the CPU; it is moved to the GPU if there is one.
        images: path of each image by its id.
        path: the HDF5 file.
        batch_size: images per forward pass; a resumed run needs the same to give the same bits.
        num_workers: processes that decode images.
        autocast: compute in bfloat16, about twice as fast on a CPU that supports it.
        repair: first reread an existing file and extract its corrupt rows again.
        progress: wraps the iterable of batches; also gets the number of images still to do.

    Raises:
        InputError: no images, or see `CacheWriter`.
    """
    if not images:
        raise InputError("there is no image to extract features of; check the data=... options")
    started = time.perf_counter()
    if extractor.missing_weights:
        log.info("unused layers that the weights file lacks: %s", ", ".join(extractor.missing_weights))
    with _open_writer(extractor, images, path, autocast) as writer:
        if repair:
            writer.forget([image_id for image_id, _ in verify(writer.target).corrupt])
        done_before = len(images) - len(writer.to_do)
        if isinstance(extractor, RowFiles):
            batches, total = _read_files(extractor, writer, batch_size), len(writer.to_do)
        else:
            row_batches = _row_batches(writer.to_do, len(writer.image_ids), batch_size)
            paths = [images.get(image_id, Path()) for image_id in writer.image_ids]
            loader = _loader(paths, extractor, row_batches, num_workers)
            batches, total = _run_network(extractor, loader, autocast), sum(map(len, row_batches))
        unreadable = [
            failure
            for rows, contents in progress(batches, total)
            for failure in _store(writer, rows, contents)
        ]
        writer.finish()
    done_now = len(images) - len(unreadable) - done_before
    return Report(len(images), done_before, done_now, unreadable, time.perf_counter() - started)


def _open_writer(
    extractor: Extractor, images: Mapping[str, Path], path: str | Path, autocast: bool
) -> CacheWriter:
    provenance, sizes = dict(extractor.provenance), None
    if not isinstance(extractor, RowFiles):
        provenance["precision"] = "bfloat16" if autocast else "float32"
        sizes = [_file_size(image) for image in images.values()]
    shape = (extractor.num_regions, extractor.feature_dim)
    writer = CacheWriter(path, list(images), shape, provenance, with_boxes=extractor.has_boxes, sizes=sizes)
    if changed := writer.changed:
        message = "%d images have changed since their extraction, first %s; they are extracted again"
        log.warning(message, len(changed), changed[0])
    return writer


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # `read_image` reports what is wrong
        return 0


class _ImageFiles(Dataset[tuple[int, Tensor | str]]):
    """Decodes images in loader workers; one that cannot be read becomes its error message."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        try:
            return row, self.transform(read_image(self.paths[row]))
        except InputError as error:
            return row, str(error)


def _row_batches(to_do: np.ndarray, total: int, batch_size: int) -> list[range]:
    """List the batches of rows, starting at multiples of the batch size, that contain a row still to do."""
    starts = sorted({int(row) // batch_size * batch_size for row in to_do})
    return [range(start, min(start + batch_size, total)) for start in starts]


def _loader(
    paths: list[Path], extractor: FrozenExtractor, row_batches: list[range], num_workers: int
) -> Iterable[tuple[list[int], Tensor, dict[int, str]]]:
    dataset = _ImageFiles(paths, extractor.transform)
    rows = [list(batch) for batch in row_batches]
    return DataLoader(dataset, batch_sampler=rows, num_workers=num_workers, collate_fn=_collate)


def _collate(items: list[tuple[int, Tensor | str]]) -> tuple[list[int], Tensor, dict[int, str]]:
    errors = {row: item for row, item in items if isinstance(item, str)}
    readable = [item for _, item in items if isinstance(item, Tensor)]
    black = torch.zeros_like(readable[0]) if readable else torch.zeros(0)
    # A black image takes the place of an unreadable one, so that the rest of its batch is computed as always.
    images = [item if isinstance(item, Tensor) else black for _, item in items]
    return [row for row, _ in items], torch.stack(images), errors


def _run_network(
    extractor: FrozenExtractor, loader: Iterable[tuple[list[int], Tensor, dict[int, str]]], autocast: bool
) -> Iterator[Batch]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    extractor = extractor.to(device)
    for rows, images, errors in loader:
        contents: list[Row | str] = [errors.get(row, "") for row in rows]
        if len(errors) < len(rows):
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                made = RegionFeatures.of(extractor(images.to(device))).rows()
            contents = [errors.get(row, content) for row, content in zip(rows, made, strict=True)]
        yield rows, contents


def _read_files(files: RowFiles, writer: CacheWriter, batch_size: int) -> Iterator[Batch]:
    """Read what is to do from published files; images they lack come last, with an error message."""
    # Published files name images by number, some of our readers by file name.
    waiting = {Path(writer.image_ids[row]).stem: int(row) for row in writer.to_do}
    # Rows leave `waiting` while the files are read, so that the first of two lines of an image counts.
    found = ((waiting.pop(image_id), content) for image_id, content in files.read_rows(waiting))
    while batch := list(islice(found, batch_size)):
        yield [row for row, _ in batch], [content for _, content in batch]
    yield list(waiting.values()), ["none of the files has this image"] * len(waiting)


def _store(writer: CacheWriter, rows: list[int], contents: list[Row | str]) -> list[tuple[str, str]]:
    """Write the rows of a batch that are still to do; return ids and error messages of unreadable images."""
    to_do, failures = set(writer.to_do.tolist()), []
    for row, content in zip(rows, contents, strict=True):
        if row not in to_do:
            continue  # computed again only to complete the batch
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
