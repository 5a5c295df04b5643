"""Fills a feature cache row by row; no finished row is lost when it is killed (layout: see `cache`)."""

import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from captioning.errors import InputError
from captioning.features.cache import (
    LAYOUT,
    RECORD,
    TO_DO,
    UNREADABLE,
    WRITTEN,
    Row,
    check_provenance,
    open_cache,
)
from captioning.files import atomic_write, partial_path

_LOCK_TIMEOUT = 8.0  # seconds; the loader workers of a killed extraction may hold the file for a moment


class CacheWriter:
    """Fills a cache and continues where an earlier run stopped.

    The rows grow in `<path>.partial`, which `finish` renames to `path`. A finished file with the same
    provenance is completed in place where only rows are missing, and copied into a new one where images
    were added. Rows of images that are not requested stay. If the size of an image file has changed, its
    row is made again.

    Args:
        path: name of the finished file.
        image_ids: all requested images; a new file has its rows in this order.
        shape: (R, D) of one row.
        provenance: plain JSON values; see `check_provenance`.
        with_boxes: whether rows have boxes and scores.
        sizes: bytes of each image file, 0 where unknown; None where there are no such files.

    Attributes:
        image_ids: of every row of the file, requested or not.
        changed: ids of the images whose file size has changed.

    Raises:
        InputError: the file was made with other options, another process is writing it, or the disk is too
            small.
    """

    def __init__(
        self,
        path: str | Path,
        image_ids: Sequence[str],
        shape: tuple[int, int],
        provenance: Mapping[str, Any],
        *,
        with_boxes: bool = False,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self.path, self.partial = Path(path), partial_path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.image_ids, self._shape, self._with_boxes = list(image_ids), shape, with_boxes
        self.target = self._prepare(dict(provenance))
        requested = dict(zip(image_ids, sizes or [0] * len(image_ids), strict=True))
        self._requested = np.array([key in requested for key in self.image_ids], bool)
        self._sizes = np.array([requested.get(key, 0) for key in self.image_ids], np.int64)
        self._descriptor = os.open(self.target, os.O_RDWR)
        self._lock()
        self._find_offsets()
        self._waiting: list[tuple[int, bytes]] = []
        self.changed = self._forget_changed()

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def forget(self, image_ids: Sequence[str]) -> None:
        """Mark the rows of some images as still to do."""
        for row, image_id in enumerate(self.image_ids):
            if image_id in image_ids:
                self._record(row, TO_DO, 0, 0)
        self.flush()

    @property
    def to_do(self) -> np.ndarray:
        """Row numbers of requested images that have no features yet, ascending."""
        return np.flatnonzero((self.records["status"] != WRITTEN) & self._requested)

    def write(self, row: int, content: Row) -> None:
        """Write the features of one image into its row; the row is valid from the next `flush` on.

        Raises:
            InputError: values that float16 cannot hold, or the disk is full.
        """
        with np.errstate(over="ignore"):
            content = content._replace(features=content.features.astype(np.float16, copy=False))
        if not np.isfinite(content.features).all():
            raise InputError("the features have values that float16 cannot hold: NaN, Inf or beyond ±65504")
        self._put(content.features, self._offsets[row])
        if self._with_boxes:
            assert content.boxes is not None and content.scores is not None
            self._put(content.boxes, self._boxes_at + row * content.boxes.nbytes)
            self._put(content.scores, self._scores_at + row * content.scores.nbytes)
        if self._sizes_at:
            self._put(self._sizes[row : row + 1], self._sizes_at + row * 8)
        self._record(row, WRITTEN, content.num_regions, content.checksum())

    def mark_unreadable(self, row: int) -> None:
        """Record that the image of this row cannot be read; a later run tries it again."""
        self._record(row, UNREADABLE, 0, 0)

    def flush(self) -> None:
        """Sync rows to the disk, then write the records that declare them valid."""
        os.fdatasync(self._descriptor)  # without it the disk might get a record before its row
        for row, record in self._waiting:
            self._put(np.frombuffer(record, np.uint8), self._rows_at + row * RECORD.itemsize)
        self._waiting.clear()

    def finish(self) -> None:
        """Sync everything and give the file its final name."""
        self.flush()
        os.fsync(self._descriptor)
        self.close()
        if self.target == self.partial:
            os.replace(self.partial, self.path)

    def close(self) -> None:
        """Close the file as it is; the next run makes the rows since the last `flush` again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _forget_changed(self) -> list[str]:
        """Mark the rows of images whose file size has changed as still to do; return the ids."""
        with open_cache(self.target) as file:
            known = file["size"][:] if "size" in file else np.zeros_like(self._sizes)
        differ = (known != self._sizes) & (known > 0) & (self._sizes > 0)  # 0: unknown
        changed = [
            self.image_ids[row] for row in np.flatnonzero(differ & (self.records["status"] == WRITTEN))
        ]
        if changed:
            self.forget(changed)
        return changed

    def _prepare(self, provenance: dict[str, Any]) -> Path:
        """Choose the file to write: the partial one, the finished one, or a new one with old rows copied."""
        for existing in (self.partial, self.path):
            if not existing.exists():
                continue
            with open_cache(existing) as file:
                check_provenance(existing, json.loads(file.attrs["provenance"]), provenance)
                if file["features"].shape[1:] != self._shape:
                    raise InputError(
                        f"{existing} holds rows of shape {file['features'].shape[1:]}, not {self._shape}; "
                        "delete it, or set features.path=<another>"
                    )
                old_ids = [key.decode() for key in file["image_id"][:]]
            known = set(old_ids)
            self.image_ids = old_ids + [key for key in self.image_ids if key not in known]
            if self.image_ids == old_ids:
                return existing
            # HDF5 structures are never changed in place: added images get a new file.
            self._create(self.image_ids, provenance, copy_from=existing)
            return self.partial
        self._create(self.image_ids, provenance)
        return self.partial

    def _create(
        self, image_ids: list[str], provenance: dict[str, Any], copy_from: Path | None = None
    ) -> None:
        row_bytes = self._shape[0] * self._shape[1] * 2
        needed, free = len(image_ids) * row_bytes, shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise InputError(
                f"{self.path} needs {needed / 1e9:.2f} GB ({len(image_ids)} images of "
                f"{row_bytes / 1024:.0f} KiB) but {self.path.parent} has {free / 1e9:.2f} GB free; make room "
                "or set features.path=..."
            )
        with atomic_write(self.partial) as fresh:
            with h5py.File(fresh, "w") as file:
                file.attrs["layout"] = LAYOUT
                file.attrs["provenance"] = json.dumps(provenance, sort_keys=True)
                self._create_datasets(file, image_ids)
            if copy_from is not None:
                self._copy_rows(copy_from, fresh)

    def _create_datasets(self, file: h5py.File, image_ids: list[str]) -> None:
        count = len(image_ids)
        file.create_dataset("image_id", data=image_ids or None, shape=(count,), dtype=h5py.string_dtype())
        _allocate(file, "features", (count, *self._shape), np.dtype("<f2"), chunk=(1, *self._shape))
        file.create_dataset("rows", data=np.zeros(count, RECORD))
        file.create_dataset("size", data=np.zeros(count, np.int64))
        if self._with_boxes:
            _allocate(file, "boxes", (count, self._shape[0], 4), np.dtype("<f4"))
            _allocate(file, "scores", (count, self._shape[0]), np.dtype("<f4"))

    def _copy_rows(self, source: Path, target: Path) -> None:
        with open_cache(source) as old, h5py.File(target, "r+") as new:
            positions = {key: row for row, key in enumerate(new["image_id"][:])}
            for row, (key, record) in enumerate(zip(old["image_id"][:], old["rows"][:], strict=True)):
                if record["status"] == WRITTEN and key in positions:
                    for name in ("features", "boxes", "scores", "size", "rows"):
                        if name in new and name in old:
                            new[name][positions[key]] = old[name][row]

    def _lock(self) -> None:
        deadline = time.monotonic() + _LOCK_TIMEOUT
        while True:
            try:
                return fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if time.monotonic() > deadline:
                    self.close()
                    message = f"another process is writing {self.target}; wait for it to end"
                    raise InputError(message) from error
            time.sleep(0.2)

    def _find_offsets(self) -> None:
        # Where in the file each row's bytes lie, so that `write` does not need HDF5.
        with open_cache(self.target) as file:
            self.records = file["rows"][:]
            self._offsets = np.zeros(len(self.records), np.int64)

            def store_offset(chunk: Any) -> None:
                self._offsets[chunk.chunk_offset[0]] = chunk.byte_offset

            file["features"].id.chunk_iter(store_offset)
            self._rows_at = file["rows"].id.get_offset()
            self._boxes_at = file["boxes"].id.get_offset() if self._with_boxes else 0
            self._scores_at = file["scores"].id.get_offset() if self._with_boxes else 0
            self._sizes_at = file["size"].id.get_offset() if "size" in file else 0

    def _record(self, row: int, status: int, count: int, checksum: int) -> None:
        self.records[row] = (status, count, checksum)
        self._waiting.append((row, self.records[row].tobytes()))

    def _put(self, values: np.ndarray, offset: int) -> None:
        content = memoryview(np.ascontiguousarray(values).view(np.uint8).reshape(-1).data)
        while content:
            try:
                # One call may write only a part: at most 2 GiB, or less where the disk fills up.
                written = os.pwrite(self._descriptor, content, offset)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise InputError(
                    f"{self.target}: the disk is full; finished rows are kept, make room and run the same "
                    "command again to continue"
                ) from error
            content, offset = content[written:], offset + written


def _allocate(
    file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype, chunk: tuple[int, ...] | None = None
) -> None:
    """Create a dataset whose bytes all get their place in the file now, without being written."""
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    layout.set_obj_track_times(False)  # with times, two files of the same rows would differ
    if chunk is not None and shape[0]:
        layout.set_chunk(chunk)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype, logical=True), space, layout)
