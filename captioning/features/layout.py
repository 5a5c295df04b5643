"""The structure of the HDF5 file of features: what it holds, how it is created, opened and checked.

Layout (B: the rows of the file, one per image):

    features  (B, R, D) float16   one row is one uncompressed chunk, so that a row is one read; or int8, see
                                  `stores`
    rows      (B,)      records   who the row is and how it was made, see `record_type`
    boxes     (B, R, 4) float32   detector regions only: x1 y1 x2 y2 as fractions of width and height
    scores    (B, R)    float32   detector regions only: the detector's confidence, 0 to 1
    attribute `provenance`        JSON: how the features were made (architecture, weights, grid, ...)
    attribute `layout`            2

Every byte that matters is covered by a checksum: HDF5's structures by HDF5 itself (in the file format of
HDF5 1.10), a record by its own, features and boxes by those in their record. Space is allocated when the file
is created, so that rows can be written to known byte offsets without HDF5; see `writer`.
"""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from captioning.errors import InputError
from captioning.features.stores import store_of
from captioning.vocabulary import printable

LAYOUT = 2
TO_DO, WRITTEN, UNREADABLE = 0, 1, 2
_PATH_ROOM = 128  # bytes by which the path of a picture may grow when it moves


def record_type(image_ids: Sequence[str], paths: Sequence[str]) -> np.dtype:
    """Return the type of a record, wide enough for these ids and paths.

    image_id: empty for a row that belongs to no image.
    path: of the picture, absolute; empty where features came from published files.
    status: `TO_DO`, `WRITTEN` or `UNREADABLE`.
    count: number of real regions.
    size, time, digest: the fingerprint of the picture, see `images.Fingerprint`.
    features, boxes: CRC-32 of the row's features, and of its boxes and scores.
    checksum: CRC-32 of the rest of the record.
    """
    id_bytes = max(map(len, map(encode, image_ids)), default=1)
    path_bytes = max(map(len, map(encode, paths)), default=0) + _PATH_ROOM
    return np.dtype(
        [("image_id", f"S{id_bytes}"), ("path", f"S{path_bytes}"), ("status", "<u1"), ("count", "<u2")]
        + [("size", "<i8"), ("time", "<i8"), ("digest", "<u8")]
        + [("features", "<u4"), ("boxes", "<u4"), ("checksum", "<u4")]
    )


def encode(text: str) -> bytes:
    """Encode an id or a path; file names that are not UTF-8 are full of lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


def decode(content: bytes) -> str:
    """Decode what `encode` encoded.

    Raises:
        UnicodeDecodeError: it is something else.
    """
    return content.decode("utf-8", "surrogatepass")


def checksums(records: np.ndarray) -> np.ndarray:
    """Compute what the `checksum` of each record must be: (B,) uint32."""
    content = memoryview(np.ascontiguousarray(records).view(np.uint8).reshape(-1).data)
    size = records.dtype.itemsize
    ends = range(size, len(content) + 1, size)
    return np.array([zlib.crc32(content[end - size : end - 4]) for end in ends], np.uint32)


def crc(*parts: np.ndarray | None) -> int:
    """Compute the CRC-32 of arrays, one after the other."""
    checksum = 0
    for part in parts:
        if part is not None:
            checksum = zlib.crc32(np.ascontiguousarray(part).view(np.uint8).reshape(-1).data, checksum)
    return checksum


def is_finite(features: np.ndarray) -> bool:
    """Whether no value of a float16 array is NaN or Inf; a tenth of the time of `np.isfinite`."""
    return bool((features.view(np.uint16) & 0x7C00).max(initial=0) < 0x7C00)  # an exponent of all ones


def create(
    path: Path, records: np.ndarray, shape: tuple[int, int], provenance: Mapping[str, Any], with_boxes: bool
) -> None:
    """Create a file with the given records and room for their rows.

    Args:
        path: replaced where there is one.
        records: (B,) of a `record_type`.
        shape: (R, D) of one row.
        provenance: plain JSON values; `store`, where it is there, says how rows are stored.
        with_boxes: whether rows have boxes and scores.
    """
    rows, store = len(records), store_of(provenance)
    stored = store.shape(shape)
    with h5py.File(path, "w", libver=("v110", "v110"), locking=False) as file:
        file.attrs["layout"] = LAYOUT
        # Of fixed length: HDF5 keeps text of variable length where no checksum covers it.
        file.attrs["provenance"] = np.bytes_(json.dumps(provenance, sort_keys=True))
        _allocate(file, "features", (rows, *stored), store.dtype, chunk=(1, *stored))
        file.create_dataset("rows", data=records)
        if with_boxes:
            _allocate(file, "boxes", (rows, shape[0], 4), np.dtype("<f4"))
            _allocate(file, "scores", (rows, shape[0]), np.dtype("<f4"))


def copy_rows(source: Path, rows: np.ndarray, target: Path) -> None:
    """Copy features and boxes, as far as they are written, of some rows of a file to another's first rows."""
    with open_cache(source) as old, h5py.File(target, "r+", locking=False) as new:
        written = old["rows"]["status"][rows] == WRITTEN
        for position, row in zip(np.flatnonzero(written).tolist(), rows[written].tolist(), strict=True):
            _, content = old["features"].id.read_direct_chunk((row, 0, 0))
            new["features"].id.write_direct_chunk((position, 0, 0), content)
            for name in ("boxes", "scores"):
                if name in new:
                    new[name][position] = old[name][row]


def fits(record: np.dtype, image_ids: Iterable[str], paths: Iterable[str]) -> bool:
    """Whether records of this type are wide enough for these ids and paths."""
    return all(
        len(encode(text)) <= record[name].itemsize
        for name, texts in (("image_id", image_ids), ("path", paths))
        for text in texts
    )


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


def open_cache(path: Path) -> h5py.File:
    """Open a file for reading and check its structure.

    Raises:
        InputError: there is no such file, it is something else, of another layout, or damaged.
    """
    name = printable(path)
    try:
        path.open("rb").close()
    except FileNotFoundError as error:
        raise InputError(
            f"there is no feature file {name}; make it with python -m captioning.extract and the same "
            "experiment=... or data=... features=... options"
        ) from error
    except OSError as error:
        raise _unreadable(name, str(error.strerror)) from error
    if not path.is_file():  # never advise to delete a device
        raise _unreadable(name, "it is no regular file")
    try:
        if not h5py.is_hdf5(path):
            raise ValueError("it is no HDF5 file")
        file = h5py.File(path, "r", locking=False)
    except Exception as error:  # h5py raises half a dozen types for a damaged file
        raise _unusable(name, error) from error
    try:
        _check_structure(name, file)
    except BaseException as error:
        file.close()
        if isinstance(error, InputError) or not isinstance(error, Exception):
            raise
        raise _unusable(name, error) from error
    return file


def _unreadable(name: str, reason: str) -> InputError:
    return InputError(f"the feature file {name} can't be read: {reason}; give features.path=<another file>")


def _unusable(name: str, error: Exception) -> InputError:
    reason = printable(" ".join(str(error).split())[:200])
    return InputError(
        f"{name} is not a feature cache of this project, or it is damaged ({reason}); delete it and run "
        "python -m captioning.extract with the same options to make it again"
    )


def _check_structure(name: str, file: h5py.File) -> None:
    layout = file.attrs.get("layout")
    if layout == 1:
        raise InputError(
            f"{name} has layout 1, needed is {LAYOUT}: it was made by an older version of captioning, "
            "without the paths of its pictures and checksums of its records; delete it and run python -m "
            "captioning.extract with the same options to make it again"
        )
    if layout != LAYOUT:
        raise ValueError(f"layout {layout}, needed {LAYOUT}")
    features, rows = file["features"], file["rows"]
    provenance = json.loads(file.attrs["provenance"])
    if not isinstance(provenance, dict):
        raise ValueError("the provenance is no JSON object")
    store = store_of(provenance)
    count, lines, dim = features.shape
    regions = lines - store.extra_lines
    needed = {"features": ((count, lines, dim), store.dtype), "rows": ((count,), rows.dtype)}
    if "boxes" in file or "scores" in file:
        needed |= {"boxes": ((count, regions, 4), "<f4"), "scores": ((count, regions), "<f4")}
    for key, (shape, dtype) in needed.items():
        if file[key].shape != shape or file[key].dtype != dtype:
            raise ValueError(f"{key} is {file[key].dtype} {file[key].shape}, needed {dtype} {shape}")
    expected = record_type([], []).fields
    assert expected is not None
    fields = rows.dtype.fields or {}
    # Ids and paths may be of any width.
    if fields.keys() != expected.keys() or any(
        fields[key][0].kind != kind.kind or (kind.kind != "S" and fields[key][0] != kind)
        for key, (kind, *_) in expected.items()
    ):
        raise ValueError(f"rows are {rows.dtype}, needed are fields {', '.join(expected)}")
    if count and features.chunks != (1, lines, dim):
        raise ValueError(f"features have chunks {features.chunks}, needed is one a row")
