"""Reading features by image id, from one HDF5 file or a folder of shards (their structure: see `layout`).

A row is compared with its checksum when it is first read in a process, so that damage ends a run with the
name of the image instead of a wrong result.
"""

import json
import logging
import os
from bisect import bisect_right
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from captioning.errors import InputError
from captioning.features.layout import UNREADABLE, WRITTEN, checksums, crc, decode, open_cache
from captioning.features.pictures import Pictures, Recorded
from captioning.features.shards import Shard, complete_files_of
from captioning.features.stores import UNRECORDED, store_of
from captioning.vocabulary import printable

log = logging.getLogger(__name__)


class Row(NamedTuple):
    """The content of one row: features (R, D) float16; for detector regions boxes (R, 4) and scores (R,)."""

    features: np.ndarray
    num_regions: int
    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None


def check_provenance(path: str | Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse features that were made with other options than the expected ones.

    Args:
        path: the file or checkpoint that records `found`, for the message.
        found: may have further keys.
        expected: see `FrozenExtractor.expected_provenance`.

    Raises:
        InputError: names the first difference with both values.
    """
    for key, needed in expected.items():
        if (value := found.get(key, UNRECORDED.get(key))) != needed:
            raise InputError(
                f"{path} holds features with {key} = {value!r} but this run expects {key} = "
                f"{needed!r}; choose the features=... options it was made with, or make a new file: delete "
                "this one or give features.path=<another>, and run python -m captioning.extract with the "
                "same options"
            )


class _Opened(NamedTuple):
    """An open file, and its features: looking them up by name takes longer than reading a row."""

    file: h5py.File
    features: Any


def kind_of(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes features another kind for a model: all but the precision and the way of storing."""
    return {key: value for key, value in provenance.items() if key not in ("precision", "store")}


class FeatureCache:
    """Reads rows by image id; every process opens its own handles, so loader workers can share the object.

    Args:
        path: the HDF5 file, or a folder of shards, see `shards`.
        check: compare each row with its checksum when it is first read.

    Attributes:
        shape: (R, D).
        grid: rows and columns of the regions, (H, W); None where regions are boxes.
        provenance: how the features were made.
        unreadable: ids of images whose files could not be read.
        made_of_pictures: whether the pictures are known, and not published files of features.
        num_damaged: records that do not match their checksum, whose images are unknown.
        varies_in_count: whether some image has fewer than R regions.

    Raises:
        InputError: there is no such file, it is not a feature cache, `check` finds damaged records, a shard
            is missing, or shards were made with different options.
    """

    def __init__(self, path: str | Path, *, check: bool = True) -> None:
        self.path = Path(path)
        self._paths = complete_files_of(self.path)
        records, intact = [], []
        for path in self._paths:
            with open_cache(path) as file:
                self._read_attributes(path, file)
                records.append(file["rows"][:])
            intact.append(checksums(records[-1]) == records[-1]["checksum"])
            if check and not intact[-1].all():
                damaged = f"{(~intact[-1]).sum()} of its {len(intact[-1])} records are damaged"
                raise _damaged(path, damaged)
        self._starts = [0, *np.cumsum([len(part) for part in records]).tolist()]  # first row of each file
        self._records, self._intact = np.concatenate(records), np.concatenate(intact)
        self.num_damaged = int((~self._intact).sum())
        self._index = self._rows_of(WRITTEN)
        self.unreadable = [image_id for image_id in self._rows_of(UNREADABLE) if image_id not in self._index]
        self.made_of_pictures = bool((self._records["path"] != b"").any())
        self.varies_in_count = bool(
            (self._records["count"][list(self._index.values())] < self.shape[0]).any()
        )
        self._unchecked, self._check_boxes = np.full(len(self._records), check), check
        self._opened: dict[int, _Opened] = {}  # by the number of the file
        self._process = -1

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._index

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}, "_process": -1}

    @property
    def image_ids(self) -> list[str]:
        """Ids of all images whose features are in the file."""
        return list(self._index)

    def read(self, image_ids: Sequence[str]) -> np.ndarray:
        """Read the features of some images.

        Returns:
            (B, R, D) float16; rows of images with fewer regions end in zeros, see `counts`.

        Raises:
            InputError: an image has no features, or a row is damaged.
        """
        # `dataset[list]` walks the whole selection for every row: a hundred times slower than this loop.
        stored = np.empty((len(image_ids), *self._store.shape(self.shape)), self._store.dtype)
        content = stored.view(np.uint8).reshape(len(image_ids), -1)
        for position, image_id in enumerate(image_ids):
            row = self._row(image_id)
            file, number = self._place(row)
            try:
                file.features.read_direct_chunk((number, 0, 0), out=content[position])
            except OSError as error:
                raise self._damaged_at(row, f"the row of image {printable(image_id)}: {error}") from error
            if self._unchecked[row]:
                self._check(row, stored[position], image_id)
        return self._store.unpack(stored)

    def counts(self, image_ids: Sequence[str]) -> np.ndarray:
        """Return the number of real regions of some images: (B,) integers."""
        return self._records["count"][[self._row(image_id) for image_id in image_ids]].astype(np.int64)

    def channel_statistics(self, image_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Compute mean and standard deviation of each channel over the real regions, (D,) float32 each.

        Of more than 500 images some are read, spread evenly: with 8 × 8 regions each, their mean differs from
        that of all by a hundredth of a deviation.
        """
        chosen = image_ids[:: -(-len(image_ids) // 500)]
        count, sums, squares = 0, np.zeros(self.shape[1]), np.zeros(self.shape[1])
        for start in range(0, len(chosen), 50):
            block = chosen[start : start + 50]
            real = np.arange(self.shape[0]) < self.counts(block)[:, None]  # (images, R)
            regions = self.read(block)[real].astype(np.float64)  # (regions, D)
            count += len(regions)
            sums += regions.sum(0)
            squares += (regions**2).sum(0)
        mean = sums / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return mean.astype(np.float32), deviation.astype(np.float32)

    def boxes(self, image_id: str) -> np.ndarray:
        """Read the boxes of one image: (R, 4), x1 y1 x2 y2 as fractions of width and height.

        Raises:
            InputError: the image has no features, or its row is damaged.
        """
        return self._regions(image_id)[0]

    def scores(self, image_id: str) -> np.ndarray:
        """Read the detector's confidences for one image: (R,), 0 to 1.

        Raises:
            InputError: the image has no features, or its row is damaged.
        """
        return self._regions(image_id)[1]

    def check_pictures(self, paths: Mapping[str, Path]) -> None:
        """Refuse features of other pictures than these; where a picture is absent, its features count.

        Args:
            paths: of pictures by image id.

        Raises:
            InputError: some have changed since their extraction, or are others of the same names.
        """
        pictures = Pictures(paths)
        recorded = self.recorded(paths)
        found = pictures.compare(recorded)
        if changed := pictures.refuse_others(self.path, recorded, found):
            raise InputError(
                f"{printable(self.path)}: {len(changed)} pictures have changed since their features were "
                f"made, first {printable(pictures.places[changed[0]])}; run python -m captioning.extract "
                "with the same options to make them again"
            )
        if found.absent:
            first = found.absent[0]
            log.warning(
                "%s: %d pictures are not there, first %s; their features, made of %s, are used",
                *(self.path, len(found.absent), printable(pictures.places[first])),
                printable(recorded[first].path),
            )

    def recorded(self, image_ids: Container[str]) -> dict[str, Recorded]:
        """Return of which picture each of these images' rows was made, where that is known."""
        columns = (self._records[name].tolist() for name in ("path", "size", "time", "digest"))
        paths, *fingerprints = columns
        return {
            image_id: Recorded(decode(paths[row]), *(column[row] for column in fingerprints))
            for image_id, row in self._index.items()
            if image_id in image_ids and paths[row]
        }

    def contents(self, image_ids: Container[str]) -> dict[str, tuple[int, int]]:
        """Return size and digest of these images' pictures, where known; equal where their content is."""
        return {key: (row.size, row.digest) for key, row in self.recorded(image_ids).items()}

    def _rows_of(self, status: int) -> dict[str, int]:
        ids = self._records["image_id"].tolist()
        rows = np.flatnonzero(self._intact & (self._records["status"] == status))
        return {decode(ids[row]): row for row in rows.tolist() if ids[row]}

    def _row(self, image_id: str) -> int:
        try:
            return self._index[image_id]
        except KeyError:
            raise InputError(
                f"{self.path} holds no features of image {image_id}; run python -m captioning.extract "
                "with the same experiment=... or data=... features=... options to add it"
            ) from None

    def _check(self, row: int, stored: np.ndarray, image_id: str) -> None:
        if crc(stored) != self._records["features"][row]:
            raise self._damaged_at(row, f"the row of image {printable(image_id)} {_describe(stored)}")
        self._unchecked[row] = False

    def _regions(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        row = self._row(image_id)
        (file, _), number = self._place(row)
        boxes, scores = file["boxes"][number], file["scores"][number]
        if self._check_boxes and crc(boxes, scores) != self._records["boxes"][row]:
            raise self._damaged_at(
                row, f"the boxes of image {printable(image_id)} differ from their checksum"
            )
        return boxes, scores

    def _place(self, row: int) -> tuple[_Opened, int]:
        """Return the file that holds a row, and the row's number there."""
        if self._process != os.getpid():  # HDF5 handles do not survive a fork
            self._opened, self._process = {}, os.getpid()
        number = bisect_right(self._starts, row) - 1
        if number not in self._opened:
            file = open_cache(self._paths[number])
            self._opened[number] = _Opened(file, file["features"].id)
        return self._opened[number], row - self._starts[number]

    def _damaged_at(self, row: int, problem: str) -> InputError:
        return _damaged(self._paths[bisect_right(self._starts, row) - 1], problem)

    def _read_attributes(self, path: Path, file: h5py.File) -> None:
        """Read what a file says of all its rows, which every shard must say alike."""
        (lines, dim), provenance = file["features"].shape[1:], json.loads(file.attrs["provenance"])
        store = store_of(provenance)
        shape = (lines - store.extra_lines, dim)
        if path == self._paths[0]:
            self.shape: tuple[int, int] = shape
            self._store = store
            self.provenance: dict[str, Any] = provenance
            self.has_boxes = "boxes" in file
            grid = provenance.get("grid")
            self.grid: tuple[int, int] | None = (grid[0], grid[1]) if grid else None
        else:
            first = {**UNRECORDED, **self.provenance, "shape": self.shape}
            check_provenance(printable(path), {**provenance, "shape": shape}, first)


def _describe(stored: np.ndarray) -> str:
    return "differs from its checksum" if np.isfinite(stored).all() else "holds NaN or Inf"


def _damaged(path: Path, problem: str) -> InputError:
    options = f"{shard.options} " if (shard := Shard.of(path)) else ""
    return InputError(
        f"{printable(path)} is damaged: {problem}; run python -m captioning.extract with the same options "
        f"and {options}repair=true"
    )
