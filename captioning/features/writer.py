"""Fills a feature cache row by row; no finished row is lost when it is killed (its structure: see `layout`).

All HDF5 structures are written once, synced and renamed into place before the first row. From then on, rows
are written directly to their known byte offsets without HDF5, and a row's record follows only when its data
is on disk. So the file is valid HDF5 at every moment, and a row is either whole or still to do.

One process at a time writes a cache, from before the file is created until it is complete. The lock is a file
of its own, `<name>.lock`; the operating system releases it when the process ends, however it ends.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from captioning.errors import InputError
from captioning.features import layout
from captioning.features.cache import Row
from captioning.features.images import Fingerprint
from captioning.features.layout import TO_DO, UNREADABLE, WRITTEN, open_cache
from captioning.features.pictures import Pictures, Recorded
from captioning.features.preparation import file_errors, fresh_path, prepare
from captioning.features.stores import store_of
from captioning.files import partial_path
from captioning.vocabulary import printable

_UNKNOWN = Fingerprint(0, 0, 0)
_LOCK_TIMEOUT = 10.0  # seconds; the loader workers of a killed extraction may hold the lock for a moment


class CacheWriter:
    """Fills a cache and continues where an earlier run stopped.

    The rows grow in `<path>.partial`, which `finish` renames to `path`. A finished file with the same
    provenance is completed in place where only rows are missing, and copied into a new one where images
    were added. Rows of images that are not requested stay. If a picture has changed, its row is made again.

    Args:
        path: name of the finished file.
        image_ids: all requested images; a new file has its rows in this order.
        shape: (R, D) of one row.
        provenance: plain JSON values; see `check_provenance`.
        with_boxes: whether rows have boxes and scores.
        pictures: of all requested images; None for features from published files.

    Attributes:
        image_ids: of every row of the file, requested or not; empty for a row without image.
        changed: ids of the images whose pictures have changed.
        num_damaged: records that did not match their checksum; their images are to do again.

    Raises:
        InputError: the file was made with other options or of other pictures, another process is writing it,
            or it can't be written.
    """

    def __init__(
        self,
        path: str | Path,
        image_ids: Sequence[str],
        shape: tuple[int, int],
        provenance: Mapping[str, Any],
        *,
        with_boxes: bool = False,
        pictures: Pictures | None = None,
    ) -> None:
        self.path, self.partial = Path(path), partial_path(path)
        self._with_boxes, self._pictures, self._store = with_boxes, pictures, store_of(provenance)
        self._places = pictures.places if pictures else {}
        self._descriptor, self._waiting = -1, dict[int, bytes]()
        self.num_damaged = 0
        _refuse_names(image_ids)
        self._lock = FileLock(f"{self.path}.lock")
        self._acquire()
        try:
            with file_errors(self.path):
                self.target = prepare(
                    self.path,
                    list(image_ids),
                    self._places,
                    shape=shape,
                    provenance=dict(provenance),
                    with_boxes=with_boxes,
                )
                self._descriptor = os.open(self.target, os.O_RDWR | getattr(os, "O_BINARY", 0))
            self._find_rows(image_ids)
            self.changed = self._compare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "CacheWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def forget(self, image_ids: Sequence[str]) -> None:
        """Mark the rows of some images as still to do."""
        for image_id in image_ids:
            if image_id in self._rows:
                self._record(self._rows[image_id], TO_DO)
        self.flush()

    @property
    def to_do(self) -> np.ndarray:
        """Row numbers of requested images that have no features yet, ascending."""
        return np.flatnonzero((self.records["status"] != WRITTEN) & self._requested)

    def is_to_do(self, row: int) -> bool:
        """Whether the image of a row is requested and has no features yet."""
        return bool(self._requested[row] and self.records["status"][row] != WRITTEN)

    def write(self, row: int, content: Row, fingerprint: Fingerprint | None = None) -> None:
        """Write the features of one image into its row; the row is valid from the next `flush` on.

        Args:
            row: its number.
            content: what to write.
            fingerprint: of the picture that the features were made of.

        Raises:
            InputError: values that float16 cannot hold, or the disk is full.
        """
        with np.errstate(over="ignore"):
            features = np.ascontiguousarray(content.features.astype(np.float16, copy=False))
        if not layout.is_finite(features):
            raise InputError("the features have values that float16 cannot hold: NaN, Inf or beyond ±65504")
        features = self._store.pack(features)
        self._put(features, self._offsets[row])
        if self._with_boxes:
            assert content.boxes is not None and content.scores is not None
            self._put(content.boxes, self._boxes_at + row * content.boxes.nbytes)
            self._put(content.scores, self._scores_at + row * content.scores.nbytes)
        checksums = layout.crc(features), layout.crc(content.boxes, content.scores)
        self._record(row, WRITTEN, content.num_regions, fingerprint or _UNKNOWN, checksums)

    def mark_unreadable(self, row: int) -> None:
        """Record that the image of this row cannot be read; a later run tries it again."""
        self._record(row, UNREADABLE)

    def flush(self) -> None:
        """Put all rows written so far on disk, then their records."""
        if not self._waiting:
            return
        self._sync()  # a record must never be on disk before the row it describes
        for row, record in sorted(self._waiting.items()):
            self._put(np.frombuffer(record, np.uint8), self._rows_at + row * len(record))
        self._waiting.clear()

    def finish(self) -> None:
        """Complete the file; rows of unreadable images stay unwritten."""
        self.flush()
        self._sync()
        self._close_file()
        if self.target == self.partial:
            with file_errors(self.path):
                os.replace(self.partial, self.path)
        self._lock.release()

    def close(self) -> None:
        """Close the file as it is; the next run makes the rows since the last `flush` again."""
        self._close_file()
        self._lock.release()

    def _close_file(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _acquire(self) -> None:
        with file_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=_LOCK_TIMEOUT)
            except Timeout as error:
                raise InputError(
                    f"another process is writing {printable(self.path)}; wait for it to end, or give "
                    "features.path=<another file>"
                ) from error

    def _find_rows(self, image_ids: Sequence[str]) -> None:
        """Find which row belongs to which image, and where in the file its bytes lie."""
        with open_cache(self.target) as file:
            self.records = file["rows"][:]
            self._offsets = np.zeros(len(self.records), np.int64)

            def store_offset(chunk: Any) -> None:
                self._offsets[chunk.chunk_offset[0]] = chunk.byte_offset

            file["features"].id.chunk_iter(store_offset)
            self._rows_at = file["rows"].id.get_offset()
            self._boxes_at = file["boxes"].id.get_offset() if self._with_boxes else 0
            self._scores_at = file["scores"].id.get_offset() if self._with_boxes else 0
        damaged = layout.checksums(self.records) != self.records["checksum"]
        self.num_damaged = int(damaged.sum())
        self.records[damaged] = np.zeros(1, self.records.dtype)
        self.image_ids = [layout.decode(key) for key in self.records["image_id"].tolist()]
        known, requested = set(self.image_ids), set(image_ids)
        missing = iter([key for key in image_ids if key not in known])
        for row in np.flatnonzero(self.records["image_id"] == b"").tolist():
            self.image_ids[row] = next(missing, "")
            if damaged[row] or self.image_ids[row]:
                self._record(row, TO_DO)
        self._rows = {image_id: row for row, image_id in enumerate(self.image_ids) if image_id}
        self._requested = np.array([key in requested for key in self.image_ids], bool)

    def _compare(self) -> list[str]:
        """Mark the rows of pictures that have changed as still to do; return the ids."""
        changed: list[str] = []
        if self._pictures:
            recorded = self._recorded()
            found = self._pictures.compare(recorded)
            changed = self._pictures.refuse_others(self.target, recorded, found)
            for image_id, (_, time) in found.same_content.items():
                self.records["time"][self._rows[image_id]] = time
                self._queue(self._rows[image_id])
        self.forget(changed)
        return changed

    def _recorded(self) -> dict[str, Recorded]:
        rows = np.flatnonzero(self._requested & (self.records["status"] == WRITTEN)).tolist()
        columns = [self.records[name][rows].tolist() for name in ("path", "size", "time", "digest")]
        return {
            self.image_ids[row]: Recorded(layout.decode(path), *fingerprint)
            for row, path, *fingerprint in zip(rows, *columns, strict=True)
            if path
        }

    def _record(
        self,
        row: int,
        status: int,
        count: int = 0,
        fingerprint: Fingerprint = _UNKNOWN,
        checksums: tuple[int, int] = (0, 0),
    ) -> None:
        record = self.records[row]
        record["image_id"] = layout.encode(self.image_ids[row])
        record["status"], record["count"] = status, count
        record["size"], record["time"], record["digest"] = fingerprint
        record["features"], record["boxes"] = checksums
        self._queue(row)

    def _queue(self, row: int) -> None:
        """Seal a record with its checksum; `flush` writes it."""
        if place := self._places.get(self.image_ids[row]):
            self.records["path"][row] = layout.encode(place)
        one = self.records[row : row + 1]
        one["checksum"] = layout.checksums(one)
        self._waiting[row] = one.tobytes()

    def _put(self, values: np.ndarray, offset: int) -> None:
        content = memoryview(np.ascontiguousarray(values).view(np.uint8).reshape(-1).data)
        with file_errors(self.path):
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            while content:
                # One call may write only a part: at most 2 GiB, or less where the disk fills up.
                content = content[os.write(self._descriptor, content) :]

    def _sync(self) -> None:
        with file_errors(self.path):
            os.fsync(self._descriptor)


def remove_leftover(path: Path) -> None:
    """Remove what a process that was killed while it created the cache has left, if nobody is creating it."""
    fresh = fresh_path(path)
    if fresh.exists():
        with suppress(OSError), FileLock(f"{path}.lock", timeout=0):
            fresh.unlink(missing_ok=True)


def _refuse_names(image_ids: Sequence[str]) -> None:
    for image_id in image_ids:
        if not image_id or "\0" in image_id:
            raise InputError(f"{image_id!r} can't be an image id: it must have a character, and no NUL")
