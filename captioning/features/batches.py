"""Batches of rows on their way into the feature cache: images through a network, or lines of published files.

Networks get rows in batches that start at multiples of the batch size, even where some rows exist already.
A resumed run therefore has each image in the same batch as an uninterrupted one, and rounding gives the
same bits.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioning.errors import InputError
from captioning.features.cache import Row
from captioning.features.frozen import FrozenExtractor
from captioning.features.images import Fingerprint, read_fingerprinted
from captioning.features.pictures import Pictures
from captioning.features.region_features import RegionFeatures
from captioning.features.writer import CacheWriter
from captioning.processes import shield_worker
from captioning.vocabulary import printable


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


class FeatureBatch(NamedTuple):
    """Row numbers; for each its content or why there is none, and the fingerprint of its picture."""

    rows: list[int]
    contents: list[Row | str]
    fingerprints: list[Fingerprint | None]


class Decoded(NamedTuple):
    """A batch of images (B, 3, H, W), black where one could not be read, with error messages by row."""

    rows: list[int]
    images: Tensor
    errors: dict[int, str]
    fingerprints: list[Fingerprint | None]


def batches_to_store(
    extractor: Extractor,
    pictures: Pictures,
    writer: CacheWriter,
    batch_size: int,
    num_workers: int,
    autocast: bool,
    gpu: int,
) -> tuple[Iterator[FeatureBatch], int]:
    """Return the batches to store, and how many rows they have in all."""
    if isinstance(extractor, RowFiles):
        return _read_files(extractor, writer, batch_size), len(writer.to_do)
    row_batches = _row_batches(writer.to_do, len(writer.image_ids), batch_size)
    paths = [pictures.paths.get(image_id, Path()) for image_id in writer.image_ids]
    loader = _loader(paths, extractor, row_batches, num_workers)
    return _run_network(extractor, loader, writer, autocast, gpu), sum(map(len, row_batches))


class _ImageFiles(Dataset[tuple[int, Tensor | str, Fingerprint | None]]):
    """Decodes images in loader workers; one that cannot be read becomes its error message."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[int, Tensor | str, Fingerprint | None]:
        try:
            image, fingerprint = read_fingerprinted(self.paths[row])
        except InputError as error:
            return row, str(error), None
        return row, self.transform(image), fingerprint


def _row_batches(to_do: np.ndarray, total: int, batch_size: int) -> list[range]:
    """List the batches of rows, starting at multiples of the batch size, that contain a row still to do."""
    starts = sorted({int(row) // batch_size * batch_size for row in to_do})
    return [range(start, min(start + batch_size, total)) for start in starts]


def _loader(
    paths: list[Path], extractor: FrozenExtractor, row_batches: list[range], num_workers: int
) -> Iterable[Decoded]:
    dataset = _ImageFiles(paths, extractor.without_network().transform)
    rows = [list(batch) for batch in row_batches]
    return DataLoader(
        dataset,
        batch_sampler=rows,
        num_workers=num_workers,
        collate_fn=_collate,
        worker_init_fn=shield_worker,
    )


def _collate(items: list[tuple[int, Tensor | str, Fingerprint | None]]) -> Decoded:
    errors = {row: item for row, item, _ in items if isinstance(item, str)}
    readable = [item for _, item, _ in items if isinstance(item, Tensor)]
    black = torch.zeros_like(readable[0]) if readable else torch.zeros(3, 0, 0)
    # A black image takes the place of an unreadable one, so that the rest of its batch is computed as always.
    images = [item if isinstance(item, Tensor) else black for _, item, _ in items]
    rows, _, fingerprints = zip(*items, strict=True)
    # Colours stay together in memory, as Pillow gives them and networks take them.
    stacked = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)  # (B, 3, H, W)
    return Decoded(list(rows), stacked, errors, list(fingerprints))


def _run_network(
    extractor: FrozenExtractor, loader: Iterable[Decoded], writer: CacheWriter, autocast: bool, gpu: int
) -> Iterator[FeatureBatch]:
    gpus = torch.cuda.device_count()
    device = torch.device("cuda", gpu % gpus) if gpus else torch.device("cpu")
    extractor = extractor.to(device)
    for rows, images, errors, fingerprints in loader:
        contents: list[Row | str] = [errors.get(row, "") for row in rows]
        # Nothing is computed where all that is to do can't be read, as in every later run.
        if any(writer.is_to_do(row) and row not in errors for row in rows):
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                made = RegionFeatures.of(extractor(images.to(device))).rows()
            contents = [errors.get(row, content) for row, content in zip(rows, made, strict=True)]
        yield FeatureBatch(rows, contents, fingerprints)


def _read_files(files: RowFiles, writer: CacheWriter, batch_size: int) -> Iterator[FeatureBatch]:
    """Read what is to do from published files; images they lack come last, with an error message."""
    # Published files name images by number, some of our readers by file name.
    check_names(files, writer.image_ids)
    waiting = {Path(writer.image_ids[row]).stem: int(row) for row in writer.to_do}
    # Rows leave `waiting` while the files are read, so that the first of two lines of an image counts.
    found = ((waiting.pop(image_id), content) for image_id, content in files.read_rows(waiting))
    while batch := list(islice(found, batch_size)):
        rows, contents = zip(*batch, strict=True)
        yield FeatureBatch(list(rows), list(contents), [None] * len(rows))
    lacking: list[Row | str] = ["none of the files has this image"] * len(waiting)
    yield FeatureBatch(list(waiting.values()), lacking, [None] * len(waiting))


def check_names(extractor: Extractor, image_ids: Iterable[str]) -> None:
    """Refuse images that published files cannot tell apart; shards need all images of the data set.

    Raises:
        InputError: names two of them.
    """
    if not isinstance(extractor, RowFiles):
        return
    known: dict[str, str] = {}
    for image_id in image_ids:
        if (other := known.setdefault(Path(image_id).stem, image_id)) != image_id:
            raise InputError(
                f"images {printable(other)} and {printable(image_id)} would both be "
                f"{printable(Path(image_id).stem)} in published files; give images names that differ"
            )


def write_batch(writer: CacheWriter, batch: FeatureBatch) -> list[tuple[str, str]]:
    """Write the rows of a batch that are still to do; return ids and error messages of unreadable images."""
    failures = []
    for row, content, fingerprint in zip(*batch, strict=True):
        if not writer.is_to_do(row):
            continue  # computed again only to complete the batch
        if isinstance(content, str):
            writer.mark_unreadable(row)
            failures.append((writer.image_ids[row], content))
            continue
        try:
            writer.write(row, content, fingerprint)
        except InputError as error:
            raise InputError(f"image {printable(writer.image_ids[row])}: {error}") from error
    writer.flush()
    return failures
