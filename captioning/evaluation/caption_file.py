r"""Captions of photographs as a file: JSON lines, CSV, or COCO's results format as its server takes it.

The suffix chooses: `.jsonl` has an object a picture, `.csv` a row a caption (`rank` 1 is the caption, the
others are alternatives), `.json` COCO's list. A file grows under a temporary name, so that a crash leaves
what came before it, and no second command can write it meanwhile. Pipes and devices get each line at once.

File names may hold anything but NUL. JSON keeps them exactly, with `\u` escapes for what is not printable: a
byte that is not UTF-8 becomes the lone surrogate that `os.fsencode` turns back. CSV shows it as `\xe9`.
"""

import csv
import io
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TextIO

from filelock import FileLock, Timeout

from captioning.errors import InputError
from captioning.evaluation.results import results_json
from captioning.files import partial_path, write_text
from captioning.vocabulary import printable

log = logging.getLogger(__name__)

STDOUT = "-"
CSV, COCO = ".csv", ".json"
SUFFIXES = ("", ".jsonl", ".ndjson", CSV, COCO)

Alternatives = Sequence[tuple[str, float]]


class CaptionFile:
    """A context manager that writes captions; an error inside it leaves an older file as it is.

    Args:
        path: the final name, a symbolic link to it, a device or a pipe; `-` is standard output.
        images: that will be added.

    Attributes:
        is_stdout: whether the captions go to standard output.

    Raises:
        InputError: another suffix, a folder, a file that another command is writing, one that cannot be
            written, or two images of the same id where the format is COCO's.
    """

    def __init__(self, path: str | Path, images: Sequence[Path] = ()) -> None:
        self.name = str(path)
        given = Path(path).expanduser()
        self._suffix = given.suffix.lower()
        if self._suffix not in SUFFIXES:
            raise InputError(f"output={path} must end in .jsonl, .csv or .json (COCO's results format)")
        if self._suffix == COCO:
            _refuse_equal_ids(images)
        descriptor = _descriptor(given)
        self.is_stdout = descriptor == 1
        self._lock: FileLock | None = None
        self._captions: dict[str, str] = {}  # by image id, for COCO's format
        self._count = 0
        with self._named_errors():
            if descriptor is not None:
                # A copy of the descriptor, so that what the shell has opened is neither cut nor replaced.
                self._file = _open_text(os.dup(descriptor))
            elif given.exists() and not given.is_file() and not given.is_dir():
                self._file = _open_text(given)  # a device or a named pipe
            else:
                self._file = self._open_partial(given)
        if self._suffix == CSV:
            self._write("image,rank,caption,log_prob\n")

    def _open_partial(self, given: Path) -> TextIO:
        if given.is_dir():
            raise InputError(
                f"output={given} is a folder; give the name of a file, such as {given}/captions.jsonl"
            )
        # Links are followed, so that the file is replaced that a link points to, not the link.
        self.path = Path(os.path.realpath(given))
        if self.path.is_symlink():
            raise InputError(f"output={self.name} is a link that leads in a circle; give another name")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = partial_path(self.path)
        self._lock = FileLock(self.path.with_name(f"{self.path.name}.lock"), timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            open(self._lock.lock_file, "a").close()  # where none can be made, that is the error
            raise InputError(
                f"output={self.name} is being written by another command (which holds "
                f"{self._lock.lock_file}); wait for it to end, or give another name"
            ) from error
        return _open_text(self._partial)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        try:
            with self._named_errors():
                if kind is None:
                    self._complete()
        finally:
            self._close()

    def add(self, path: Path, text: str, log_prob: float, alternatives: Alternatives = ()) -> None:
        """Write the captions of one picture.

        Raises:
            InputError: the file cannot be written.
        """
        self._count += 1
        rows = [(text, round(log_prob, 4)), *((other, round(value, 4)) for other, value in alternatives)]
        if self._suffix == CSV:
            self._write(_csv_rows(path, rows))
            return
        if self._suffix == COCO:
            self._captions[image_id_of(path)] = text
        if self._suffix != COCO or self._lock:  # a pipe gets COCO's list at the end
            self._write(_json_line(path, rows))

    def _write(self, text: str) -> None:
        with self._named_errors():
            self._file.write(text)
            self._file.flush()

    def _complete(self) -> None:
        coco = _escaped(results_json(self._captions)) if self._suffix == COCO else ""
        if self._lock is None:
            self._file.write(coco)
            self._file.close()
        elif self._count:
            os.fsync(self._file.fileno())
            self._file.close()
            if coco:
                write_text(self.path, coco)
                self._partial.unlink()
            else:
                os.replace(self._partial, self.path)

    def _close(self) -> None:
        with suppress(OSError):  # what could not be written has been reported
            self._file.close()
        if self._lock is None:
            return
        if self._partial.exists():
            if self._count:
                log.warning("the captions so far are in %s", printable(self._partial))
            else:
                self._partial.unlink()
        with suppress(OSError):  # Windows does not remove a file that is open
            os.unlink(self._lock.lock_file)
        self._lock.release()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise  # the reader has gone, which is no fault of the output
        except OSError as error:
            reason = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
            raise InputError(
                f"output={self.name} cannot be written ({reason}); give another place, or make room there"
            ) from error


def image_id_of(path: Path) -> str:
    """Return the number that a COCO file name ends in (COCO_test2014_000000000042.jpg is 42), or the name."""
    number = re.search(r"(?:^|_)(\d{12})$", path.stem)
    return str(int(number[1])) if number else path.stem


def _refuse_equal_ids(images: Sequence[Path]) -> None:
    first: dict[str, Path] = {}
    for path in images:
        image_id = image_id_of(path)
        if image_id in first:
            raise InputError(
                f"two pictures have the id {image_id} in COCO's format: {first[image_id]} and {path}; give "
                "output=….jsonl, or other file names"
            )
        first[image_id] = path


def _descriptor(path: Path) -> int | None:
    """Return the number of the open file that a name such as `/dev/stdout` stands for."""
    if str(path) == STDOUT:
        return 1
    for number, name in ((1, "/dev/stdout"), (2, "/dev/stderr")):
        if str(path) == name:
            return number
    if match := re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", str(path)):
        return int(match[1])
    try:  # by whatever name: the output may be redirected to the very file
        return 1 if path.is_file() and os.path.samestat(path.stat(), os.fstat(1)) else None
    except OSError:
        return None


def _open_text(target: Path | int) -> TextIO:
    return open(target, "w", encoding="utf-8", newline="")


def _json_line(path: Path, rows: Sequence[tuple[str, float]]) -> str:
    captions = [{"caption": text, "log_prob": log_prob} for text, log_prob in rows]
    entry: dict[str, Any] = {"image": str(path), **captions[0]}
    if captions[1:]:
        entry["alternatives"] = captions[1:]
    return _escaped(json.dumps(entry, ensure_ascii=False)) + "\n"


def _csv_rows(path: Path, rows: Sequence[tuple[str, float]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for rank, (text, log_prob) in enumerate(rows, start=1):
        writer.writerow([printable(path), rank, printable(text), log_prob])
    return buffer.getvalue()


def _escaped(text: str) -> str:
    """Escape the characters of a JSON text that are not printable, or no characters at all."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
