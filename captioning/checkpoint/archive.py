"""What a checkpoint file declares of itself, checked before any of it is loaded.

A file of `torch.save` is a zip archive of stored (never compressed) records: `data.pkl`, the containers as a
pickle, and the numbers of every tensor. `torch.load(weights_only=True)` runs no code of a stranger, but it
believes the sizes that the file states: a few bytes can ask for all memory there is. Here the archive's table
is held against the size of the file, and the pickle is read once without tensors, against that table. What it
may contain is what checkpoints of this project contain: plain containers, numbers, texts and dense tensors.
"""

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captioning.errors import InputError

MAX_PICKLE = 16 * 2**20  # bytes; the longest of ours has a vocabulary of some 100 kB
MAX_ENTRIES = 1_000_000  # of all containers together, each counted wherever it is mentioned
MAX_DEPTH = 64  # of containers in containers

_RECORDS = re.compile(
    r"data\.pkl|data/\d+|byteorder|version|\.data/serialization_id|\.format_version|\.storage_alignment"
)
_ITEM_SIZES = {
    f"{kind}Storage": size
    for kind, size in {
        **dict.fromkeys(("Byte", "Char", "Bool", "Untyped"), 1),
        **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
        **dict.fromkeys(("Float", "Int"), 4),
        **dict.fromkeys(("Double", "Long"), 8),
    }.items()
}


def check_archive(path: str | Path) -> None:
    """Refuse a file that is no checkpoint, or asks for more memory than it has bytes, without loading it.

    Raises:
        InputError: says what it is instead.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = _record_sizes(archive, os.stat(path).st_size)
            if damaged := archive.testzip():  # reads everything once; torch does not compare checksums
                raise InputError(f"the checksum of its record {damaged} is another, so the file is damaged")
            _check_pickle(archive, sizes)
    except InputError as error:
        raise InputError(f"{path} is not a readable checkpoint: {error}") from error
    except Exception as error:  # zipfile and pickle raise a dozen types for a broken file
        raise InputError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {str(error)[:200]})"
        ) from error


def _record_sizes(archive: zipfile.ZipFile, file_size: int) -> dict[str, int]:
    """Return the number of bytes of each record, by its name without the archive's."""
    records = archive.infolist()
    sizes: dict[str, int] = {}
    prefix = records[0].filename.partition("/")[0] if records else ""
    for record in records:
        folder, _, name = record.filename.partition("/")
        if folder != prefix or not _RECORDS.fullmatch(name) or name in sizes:
            raise InputError(f"its record {record.filename[:80]!r} is none that torch.save writes")
        if record.compress_type != zipfile.ZIP_STORED:
            raise InputError(f"its record {name} is compressed, and would be {record.file_size:,} bytes")
        sizes[name] = record.file_size
    if (total := sum(sizes.values())) > file_size:
        raise InputError(f"its records declare {total:,} bytes, but the file has {file_size:,}")
    if total > _memory():
        raise InputError(f"its records declare {total:,} bytes, which is more than this machine's memory")
    if not 0 < sizes.get("data.pkl", 0) <= MAX_PICKLE:
        raise InputError(f"data.pkl has {sizes.get('data.pkl', 0):,} bytes; needed are 1 to {MAX_PICKLE:,}")
    return sizes


def _memory() -> float:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):  # Windows
        return float("inf")


def _check_pickle(archive: zipfile.ZipFile, sizes: Mapping[str, int]) -> None:
    name = f"{archive.infolist()[0].filename.partition('/')[0]}/data.pkl"
    _check_extent(_Skeleton(io.BytesIO(archive.read(name)), sizes).load())


def _check_extent(tree: Any) -> None:
    """Refuse containers that are nested too deeply, or too large once shared parts are copied."""
    left, stack = MAX_ENTRIES, [(tree, 0)]
    while stack:
        node, depth = stack.pop()
        parts: Sequence[Any] = ()
        if isinstance(node, dict):
            parts = [*node.keys(), *node.values()]
        elif isinstance(node, (list, tuple)):
            parts = node
        left -= len(parts)
        if depth > MAX_DEPTH or left < 0:
            raise InputError(
                f"it holds containers {MAX_DEPTH} levels deep, or more than {MAX_ENTRIES:,} entries"
            )
        stack += [(part, depth + 1) for part in parts if isinstance(part, (dict, list, tuple))]


class _ItemSize(int):
    """The number of bytes of an element, in place of the class of a storage."""


class _Storage(NamedTuple):
    """In place of a storage: its number of elements, and of bytes of each."""

    length: int
    item_size: int


class _Tensor:
    """Stands for a tensor."""


class _Dispatch(dict[int, Callable[..., Any]]):
    """The instructions of a pickle by their byte; all others are refused."""

    def __missing__(self, opcode: int) -> Any:
        raise InputError(f"it holds the instruction {bytes([opcode])!r}, which torch.save does not write")


class _Skeleton(pickle._Unpickler):
    """Unpickles the containers of a checkpoint with stand-ins for its tensors.

    The interpreter that is written in Python, because its table of instructions can be cut down to those that
    `torch.save` uses; among the others are some that reserve as much memory as the file asks for.
    """

    stack: list[Any]
    dispatch = _Dispatch(
        (opcode[0], pickle._Unpickler.dispatch[opcode[0]])
        for opcode in (
            *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE, pickle.BINPERSID),
            *(pickle.EMPTY_DICT, pickle.EMPTY_LIST, pickle.EMPTY_TUPLE, pickle.SETITEM, pickle.SETITEMS),
            *(pickle.APPEND, pickle.APPENDS, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
            *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BININT, pickle.BININT1, pickle.BININT2),
            *(pickle.LONG1, pickle.BINFLOAT, pickle.BINUNICODE),
            *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
        )
    )

    def __init__(self, file: io.BytesIO, sizes: Mapping[str, int]) -> None:
        super().__init__(file)
        self.sizes = sizes
        # Views of one storage that are copied one by one take more than the file has; tied weights are few.
        self.bytes_left = 4 * sum(sizes.values())

    def find_class(self, module: str, name: str) -> Any:
        if module in ("torch", "torch.storage") and name in _ITEM_SIZES:
            return _ItemSize(_ITEM_SIZES[name])
        known: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": OrderedDict,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor_v2": self.tensor,
            "torch._utils._rebuild_parameter": lambda data, *_: data,
        }
        if f"{module}.{name}" not in known:
            raise InputError(f"it holds a {module}.{name}, which no checkpoint of this project does"[:200])
        return known[f"{module}.{name}"]

    def persistent_load(self, pid: Any) -> _Storage:
        """Check a reference to the numbers of a tensor."""
        kind, item_size, key, _, length = pid
        if kind != "storage" or not isinstance(item_size, _ItemSize) or type(length) is not int:
            raise InputError("it refers to something that is no storage")
        found = self.sizes.get(f"data/{key}")
        if found != length * item_size:
            raise InputError(
                f"its storage {key!s:.40} declares {length * item_size:,} bytes, but the record has {found}"
            )
        return _Storage(length, item_size)

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _Tensor:
        """Check what `torch._utils._rebuild_tensor_v2` would build: a dense tensor within its storage."""
        counts = [offset, *size, *stride]
        if not all(type(count) is int and count >= 0 for count in counts) or len(size) != len(stride):
            raise InputError(f"it holds a tensor of size {size!s:.80} and strides {stride!s:.80}")
        number, last = 1, offset
        for length, step in zip(size, stride, strict=True):
            number, last = number * length, last + max(0, length - 1) * step
        if number > storage.length or number and last >= storage.length:
            raise InputError(f"it holds a tensor of {number:,} elements in a storage of {storage.length:,}")
        self.bytes_left -= number * storage.item_size
        if self.bytes_left < 0:
            raise InputError("its tensors are views of so few numbers that copies would fill the memory")
        return _Tensor()

    def build(self) -> None:
        """Set attributes: the version of a state dict, which hangs on it."""
        state = self.stack.pop()
        if type(self.stack[-1]) is not OrderedDict or not isinstance(state, dict):
            raise InputError("it sets attributes of something that is no OrderedDict")

    dispatch[pickle.BUILD[0]] = build
