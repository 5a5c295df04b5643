"""Reading the HDF5 file of features by image id (its structure: see `layout`).

A row is compared with its checksum when it is first read in a process, so that damage ends a run with the
name of the image instead of a wrong result.
"""

import json
import logging
import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from captioning.errors import InputError
from captioning.features.layout import UNREADABLE, WRITTEN, checksums, crc, decode, open_cache
from captioning.features.pictures import Pictures, Recorded
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
        if found.get(key) != needed:
            raise InputError(
                f"{path} holds features with {key} = {found.get(key)!r} but this run expects {key} = "
                f"{needed!r}; choose the features=... options it was made with, or make a new file: delete "
                "this one or give features.path=<another>, and run python -m captioning.extract with the "
                "same options"
            )


class FeatureCache:
    """Reads rows by image id; every process opens its own handle, so loader workers can share the object.

    Args:
        path: the HDF5 file.
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
        InputError: there is no such file, it is not a feature cache, or `check` finds damaged records.
    """

    def __init__(self, path: str | Path, *, check: bool = True) -> None:
        self.path = Path(path)
        with open_cache(self.path) as file:
            self.shape: tuple[int, int] = file["features"].shape[1:]
            self.provenance: dict[str, Any] = json.loads(file.attrs["provenance"])
            grid = self.provenance.get("grid")
            self.grid: tuple[int, int] | None = (grid[0], grid[1]) if grid else None
            self.has_boxes = "boxes" in file
            self._records = file["rows"][:]
        self._intact = checksums(self._records) == self._records["checksum"]
        self.num_damaged = int((~self._intact).sum())
        if check and self.num_damaged:
            raise _damaged(self.path, f"{self.num_damaged} of its {len(self._records)} records are damaged")
        self._index = self._rows_of(WRITTEN)
        self.unreadable = list(self._rows_of(UNREADABLE))
        self.made_of_pictures = bool((self._records["path"] != b"").any())
        self.varies_in_count = bool(
            (self._records["count"][list(self._index.values())] < self.shape[0]).any()
        )
        self._unchecked, self._check_boxes = np.full(len(self._records), check), check
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

        Raises:
            InputError: an image has no features, or a row is damaged.
        """
        # `dataset[list]` walks the whole selection for every row: a hundred times slower than this loop.
        dataset = self._opened()["features"].id
        features = np.empty((len(image_ids), *self.shape), dtype=np.float16)
        content = features.view(np.uint8).reshape(len(image_ids), -1)
        for position, image_id in enumerate(image_ids):
            row = self._row(image_id)
            try:
                dataset.read_direct_chunk((row, 0, 0), out=content[position])
            except OSError as error:
                raise _damaged(self.path, f"the row of image {printable(image_id)}: {error}") from error
            if self._unchecked[row]:
                self._check(row, features[position], image_id)
        return features

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

    def _check(self, row: int, features: np.ndarray, image_id: str) -> None:
        if crc(features) != self._records["features"][row]:
            raise _damaged(self.path, f"the row of image {printable(image_id)} {_describe(features)}")
        self._unchecked[row] = False

    def _regions(self, image_id: str) -> tuple[np.ndarray, np.ndarray]:
        row, file = self._row(image_id), self._opened()
        boxes, scores = file["boxes"][row], file["scores"][row]
        if self._check_boxes and crc(boxes, scores) != self._records["boxes"][row]:
            raise _damaged(self.path, f"the boxes of image {printable(image_id)} differ from their checksum")
        return boxes, scores

    def _opened(self) -> h5py.File:
        # HDF5 handles do not survive a fork.
        if self._file is None or self._process != os.getpid():
            self._file, self._process = open_cache(self.path), os.getpid()
        return self._file


def _describe(features: np.ndarray) -> str:
    return "differs from its checksum" if np.isfinite(features).all() else "holds NaN or Inf"


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(
        f"{printable(path)} is damaged: {problem}; run python -m captioning.extract with the same options "
        "and repair=true"
    )
