"""Which picture a row of the cache belongs to: the same file, changed, moved, or another of the same name.

As in git, a picture whose path, size and time of change are those recorded counts as the same without being
read. Any other is compared by the digest of its content, so that data sets may be moved or copied.
"""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from captioning.errors import InputError
from captioning.features.images import digest
from captioning.vocabulary import printable

log = logging.getLogger(__name__)

_THREADS = 8  # file systems of a network answer many questions at once
_MANY = 1000

Key = TypeVar("Key")
Value = TypeVar("Value")


class Recorded(NamedTuple):
    """The picture that a row was made of: absolute path and fingerprint."""

    path: str
    size: int
    time: int
    digest: int


class Comparison(NamedTuple):
    """Image ids whose picture is not, byte for byte and place for place, the one recorded.

    same_content: moved or touched, with the size and time that it has now.
    changed: at the same place, with other content.
    elsewhere: at another place, with other content.
    absent: at another place where there is none, so that nothing can be compared.
    """

    same_content: dict[str, tuple[int, int]]
    changed: list[str]
    elsewhere: list[str]
    absent: list[str]


class Pictures:
    """The picture files of a run.

    Args:
        paths: of each picture by its image id.

    Attributes:
        places: the absolute paths, links of folders resolved.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self.paths = dict(paths)
        self.places = _absolute(self.paths)
        self._states: dict[str, tuple[int, int] | None] = {}
        self._digests: dict[str, int | None] = {}

    def compare(self, recorded: Mapping[str, Recorded]) -> Comparison:
        """Compare pictures with what rows were made of, by image id; files are read at most once."""
        found = Comparison({}, [], [], [])
        self._look_at(recorded)
        states: dict[str, tuple[int, int]] = {}
        unsure: dict[str, Recorded] = {}
        for image_id, row in recorded.items():
            state, moved = self._states[image_id], self.places[image_id] != row.path
            if state is None:
                if moved:
                    found.absent.append(image_id)
            elif moved or state != (row.size, row.time):
                unsure[image_id], states[image_id] = row, state
        self._read([image_id for image_id, row in unsure.items() if states[image_id][0] == row.size])
        for image_id, row in unsure.items():
            moved = self.places[image_id] != row.path
            state = states[image_id]
            if state[0] != row.size or self._digests[image_id] not in (row.digest, None):
                (found.elsewhere if moved else found.changed).append(image_id)
            elif self._digests[image_id] is not None:
                found.same_content[image_id] = state
            elif moved:  # there, but not readable by this user
                found.absent.append(image_id)
        return found

    def refuse_others(self, cache: Path, recorded: Mapping[str, Recorded], found: Comparison) -> list[str]:
        """Refuse a cache of other pictures; return the ids of those that have changed.

        Where the data set has moved, as most pictures at another place show, those with another content have
        changed. Else they are other pictures of the same names.

        Raises:
            InputError: names the first picture, with both paths.
        """
        moved = sum(self.places[image_id] != recorded[image_id].path for image_id in found.same_content)
        if len(found.elsewhere) > moved:
            first = found.elsewhere[0]
            raise InputError(
                f"{printable(cache)} holds features of other pictures: its image {printable(first)} is "
                f"{printable(recorded[first].path)}, but here it is {printable(self.places[first])}, which "
                f"has another content ({len(found.elsewhere)} such pictures); give "
                "features.path=<another file> to keep both, or delete this one"
            )
        return found.changed + found.elsewhere

    def _look_at(self, image_ids: Iterable[str]) -> None:
        new = [image_id for image_id in image_ids if image_id not in self._states]
        self._states.update(_in_threads(self._state, new))

    def _read(self, image_ids: Iterable[str]) -> None:
        new = [image_id for image_id in image_ids if image_id not in self._digests]
        if len(new) >= _MANY:
            message = (
                "%d pictures have moved or were touched; comparing their content, each time until captioning "
                "extract has recorded where they are"
            )
            log.info(message, len(new))
        self._digests.update(_in_threads(self._digest, new))

    def _state(self, image_id: str) -> tuple[int, int] | None:
        try:
            state = os.stat(self.paths[image_id])
        except (OSError, ValueError):  # `read_image` reports what is wrong
            return None
        return state.st_size, state.st_mtime_ns

    def _digest(self, image_id: str) -> int | None:
        try:
            with open(self.paths[image_id], "rb") as file:
                return digest(file)
        except OSError:
            return None


def _absolute(paths: Mapping[str, Path]) -> dict[str, str]:
    folders: dict[Path, str] = {}
    places = {}
    for image_id, path in paths.items():
        if path.parent not in folders:
            try:
                folders[path.parent] = os.path.realpath(path.parent)
            except (OSError, ValueError):  # a loop of links, or NUL in the name
                folders[path.parent] = os.path.abspath(path.parent)
        places[image_id] = os.path.join(folders[path.parent], path.name)
    return places


def _in_threads(look: Callable[[Key], Value], keys: list[Key]) -> dict[Key, Value]:
    step = max(1, min(256, len(keys) // _THREADS))
    parts = [keys[start : start + step] for start in range(0, len(keys), step)]
    with ThreadPoolExecutor(_THREADS) as pool:
        values = list(pool.map(lambda part: [look(key) for key in part], parts))
    return dict(zip(keys, [value for part in values for value in part], strict=True))
