"""The HDF5 file that holds the features of every image; no finished row is lost when its writer is killed.

Layout (B: the rows of the file, one per image):

    features  (B, R, D) float16   one row is one uncompressed chunk, so that a row is one read
    image_id  (B,)      text      the table by which rows are found
    rows      (B,)      records   status (0 to do, 1 written, 2 unreadable image), real regions, CRC-32
    size      (B,)      int64     bytes of the image file, 0 where unknown
    boxes     (B, R, 4) float32   detector regions only: x1 y1 x2 y2 as fractions of width and height
    scores    (B, R)    float32   detector regions only: the detector's confidence, 0 to 1
    attribute `provenance`        JSON: how the features were made (architecture, weights, grid, ...)
    attribute `layout`            1

How it survives a kill: all HDF5 structures are written once, synced and renamed into place before the first
row. From then on, rows are written directly to their known byte offsets without HDF5, and a row's record
follows only when its data is on disk. So the file is valid HDF5 at every moment, and a row is either whole
or still to do.
"""

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from captioning.errors import InputError

LAYOUT = 1
TO_DO, WRITTEN, UNREADABLE = 0, 1, 2
RECORD = np.dtype([("status", "<u1"), ("count", "<u2"), ("checksum", "<u4")])


class Row(NamedTuple):
    """The content of one row: features (R, D) float16; for detector regions boxes (R, 4) and scores (R,)."""

    features: np.ndarray
    num_regions: int
    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None

    def checksum(self) -> int:
        """Return the CRC-32 of features, boxes and scores."""
        checksum = zlib.crc32(np.ascontiguousarray(self.features).view(np.uint8).reshape(-1).data)
        for part in (self.boxes, self.scores):
            if part is not None:
                checksum = zlib.crc32(np.ascontiguousarray(part).view(np.uint8).reshape(-1).data, checksum)
        return checksum


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
        if found.get(key) != needed:
            raise InputError(
                f"{path} holds features with {key} = {found.get(key)!r} but this run expects {key} = "
                f"{needed!r}; choose the features=... options it was made with, or make a new file: delete "
                "this one or give features.path=<another>, and run python -m captioning.extract with the "
                "same options"
            )


class FeatureCache:
    """Reads rows by image id; every process opens its own handle, so loader workers can share the object.

    Attributes:
        shape: (R, D).
        grid: rows and columns of the regions, (H, W); None where regions are boxes.
        provenance: how the features were made.
        unreadable: ids of images whose files could not be read.
        varies_in_count: whether some image has fewer than R regions.

    Raises:
        InputError: there is no such file or it is not a feature cache.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with open_cache(self.path) as file:
            self.shape: tuple[int, int] = file["features"].shape[1:]
            self.provenance: dict[str, Any] = json.loads(file.attrs["provenance"])
            grid = self.provenance.get("grid")
            self.grid: tuple[int, int] | None = (grid[0], grid[1]) if grid else None
            self.has_boxes = "boxes" in file
            ids = [image_id.decode() for image_id in file["image_id"][:]]
            self._records = file["rows"][:]
        self._index = {key: row for row, key in enumerate(ids) if self._records["status"][row] == WRITTEN}
        self.unreadable = [key for row, key in enumerate(ids) if self._records["status"][row] == UNREADABLE]
        self.varies_in_count = bool(
            (self._records["count"][list(self._index.values())] < self.shape[0]).any()
        )
        self._file: h5py.File | None = None
        self._process = -1

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._index

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_process": -1}

    @property
    def image_ids(self) -> list[str]:
        """Ids of all images whose features are in the file."""
        return list(self._index)

    def read(self, image_ids: Sequence[str]) -> np.ndarray:
        """Read the features of some images.

        Returns:
            (B, R, D) float16; rows of images with fewer regions end in zeros, see `counts`.
        """
        # `dataset[list]` walks the whole selection for every row: a hundred times slower than this loop.
        dataset = self._opened()["features"].id
        features = np.empty((len(image_ids), *self.shape), dtype=np.float16)
        rows = features.view(np.uint8).reshape(len(image_ids), -1)
        for position, image_id in enumerate(image_ids):
            dataset.read_direct_chunk((self._row(image_id), 0, 0), out=rows[position])
        return features

    def counts(self, image_ids: Sequence[str]) -> np.ndarray:
        """Return the number of real regions of some images: (B,) integers."""
        return self._records["count"][[self._row(image_id) for image_id in image_ids]].astype(np.int64)

    def boxes(self, image_id: str) -> np.ndarray:
        """Read the boxes of one image: (R, 4), x1 y1 x2 y2 as fractions of width and height."""
        return self._opened()["boxes"][self._row(image_id)]

    def scores(self, image_id: str) -> np.ndarray:
        """Read the detector's confidences for one image: (R,), 0 to 1."""
        return self._opened()["scores"][self._row(image_id)]

    def _row(self, image_id: str) -> int:
        try:
            return self._index[image_id]
        except KeyError:
            raise InputError(
                f"{self.path} holds no features of image {image_id}; run python -m captioning.extract "
                "with the same experiment=... or data=... features=... options to add it"
            ) from None

    def _opened(self) -> h5py.File:
        # HDF5 handles do not survive a fork.
        if self._file is None or self._process != os.getpid():
            self._file, self._process = open_cache(self.path), os.getpid()
        return self._file


class Findings(NamedTuple):
    """Image ids by the state of their rows; `corrupt` has the problem as well."""

    good: list[str]
    to_do: list[str]
    unreadable: list[str]
    corrupt: list[tuple[str, str]]


def verify(path: str | Path) -> Findings:
    """Reread every row and check it for a wrong checksum, NaN, Inf and rows of only zeros.

    Raises:
        InputError: there is no such file or it is not a feature cache.
    """
    findings = Findings([], [], [], [])
    with open_cache(Path(path)) as file:
        for index, (key, record) in enumerate(zip(file["image_id"][:], file["rows"][:], strict=True)):
            image_id = key.decode()
            if record["status"] != WRITTEN:
                (findings.unreadable if record["status"] == UNREADABLE else findings.to_do).append(image_id)
                continue
            extras = [file[name][index] if name in file else None for name in ("boxes", "scores")]
            problem = _problem(
                Row(file["features"][index], int(record["count"]), *extras), record["checksum"]
            )
            if problem:
                findings.corrupt.append((image_id, problem))
            else:
                findings.good.append(image_id)
    return findings


def _problem(row: Row, checksum: int) -> str:
    if not np.isfinite(row.features).all():
        return "NaN or Inf"
    if row.checksum() != checksum:
        return "checksum differs"
    if not row.features.any():
        return "all zero"
    return ""


def open_cache(path: Path) -> h5py.File:
    """Open the file for reading.

    Raises:
        InputError: there is no such file, or it is something else.
    """
    if not path.exists():
        raise InputError(
            f"there is no feature file {path}; make it with python -m captioning.extract and the same "
            "experiment=... or data=... features=... options"
        )
    try:
        file = h5py.File(path, "r", locking=False)
        if file.attrs.get("layout") != LAYOUT:
            raise KeyError(f"layout {file.attrs.get('layout')}, needed {LAYOUT}")
        return file
    except (OSError, KeyError) as error:
        raise InputError(
            f"{path} is not a feature cache of this project ({error}); extract it again"
        ) from error
