"""Chooses or creates the file that a `CacheWriter` fills; only the process that has the lock may call it."""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from captioning.errors import InputError
from captioning.features import layout
from captioning.features.cache import check_provenance
from captioning.features.stores import UNRECORDED, store_of
from captioning.files import PARTIAL, partial_path
from captioning.vocabulary import printable


def fresh_path(path: Path) -> Path:
    """Return the name under which the file at `path` is created, before it is the partial one."""
    # No process id in it: what a killed process leaves is replaced by the next one that has the lock.
    return path.with_name(f"{path.name}.new{PARTIAL}")


def prepare(
    path: Path,
    image_ids: list[str],
    places: Mapping[str, str],
    *,
    shape: tuple[int, int],
    provenance: dict[str, Any],
    with_boxes: bool,
) -> Path:
    """Return the file to write: the partial one, the finished one, or a new one with old rows copied.

    Args:
        path: of the finished file.
        image_ids: that need a row.
        places: absolute path of each picture by image id, where there are pictures.
        shape: (R, D).
        provenance: plain JSON values.
        with_boxes: whether rows have boxes and scores.

    Raises:
        InputError: the file was made with other options, is damaged, or the disk is too small.
        OSError: as the file system gives it.
    """
    fresh_path(path).unlink(missing_ok=True)
    partial = partial_path(path)
    existing = next((one for one in (partial, path) if one.exists()), None)
    if existing is None:
        _create(path, _new_records(image_ids, places), shape, provenance, with_boxes)
        return partial
    records = _records_of(existing, shape, provenance)
    intact = layout.checksums(records) == records["checksum"]
    kept = np.flatnonzero(intact & (records["image_id"] != b""))
    old_ids = [layout.decode(key) for key in records["image_id"][kept].tolist()]
    known = set(old_ids)
    added = [image_id for image_id in image_ids if image_id not in known]
    wide_enough = layout.fits(records.dtype, added, (places.get(image_id, "") for image_id in image_ids))
    if wide_enough and len(added) <= len(records) - len(kept):  # they get the rows of damaged records
        return existing
    # HDF5 structures are never changed in place: added images get a new file.
    old_paths = [layout.decode(place) for place in records["path"][kept].tolist()]
    fresh = _new_records(old_ids + added, places, old_paths)
    for field in records.dtype.names:
        fresh[field][: len(kept)] = records[field][kept]
    _create(path, fresh, shape, provenance, with_boxes, copy=(existing, kept))
    return partial


def _records_of(existing: Path, shape: tuple[int, int], provenance: Mapping[str, Any]) -> Any:
    """Read the records of a file that was made with the same options."""
    with layout.open_cache(existing) as file:
        expected = {**UNRECORDED, **provenance}
        check_provenance(printable(existing), json.loads(file.attrs["provenance"]), expected)
        stored = store_of(provenance).shape(shape)
        if (found := file["features"].shape[1:]) != stored:
            raise InputError(
                f"{printable(existing)} holds rows of shape {found}, not {stored}; delete it, or set "
                "features.path=<another>"
            )
        return file["rows"][:]


def _new_records(
    image_ids: Sequence[str], places: Mapping[str, str], old_paths: Sequence[str] = ()
) -> np.ndarray:
    paths = [places.get(image_id, "") for image_id in image_ids]
    records = np.zeros(len(image_ids), layout.record_type(image_ids, [*paths, *old_paths]))
    records["image_id"] = [layout.encode(image_id) for image_id in image_ids]
    records["path"] = [layout.encode(path) for path in paths]
    return records


def _create(
    path: Path,
    records: np.ndarray,
    shape: tuple[int, int],
    provenance: dict[str, Any],
    with_boxes: bool,
    copy: tuple[Path, np.ndarray] | None = None,
) -> None:
    """Create the partial file; `copy` is a file and those of its rows that become the first rows."""
    store = store_of(provenance)
    row_bytes = math.prod(store.shape(shape)) * store.dtype.itemsize
    needed, free = len(records) * row_bytes, shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(
            f"{printable(path)} needs {needed / 1e9:.2f} GB ({len(records)} images of "
            f"{row_bytes / 1024:.0f} KiB) but {printable(path.parent)} has {free / 1e9:.2f} GB free; make "
            "room or set features.path=..."
        )
    records["checksum"] = layout.checksums(records)
    fresh = fresh_path(path)
    try:
        layout.create(fresh, records, shape, provenance, with_boxes)
        if copy:
            layout.copy_rows(*copy, fresh)
        with fresh.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(fresh, partial_path(path))
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into an error with its remedy.

    Raises:
        InputError: for any OSError.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        if error.errno in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in reason:
            raise InputError(
                f"{printable(path)}: the disk is full; finished rows are kept, make room and run the same "
                "command again to continue"
            ) from error
        raise InputError(
            f"{printable(path)} can't be written ({reason}); set features.path=<where you may write>"
        ) from error
