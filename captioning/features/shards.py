"""A feature cache in several files: shards in one folder, each extracted by itself, read as one cache.

Shard k of n has every n-th batch of the images, from batch k on. So a network gets each image in the same
batch as in an extraction into one file, and rounding gives the same bits.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from captioning.errors import InputError
from captioning.vocabulary import printable

_NAME = re.compile(r"(\d{5})-of-(\d{5})\.h5")  # and what else belongs to it: .partial, .lock


class Shard(NamedTuple):
    """One of `total` shards, by its number from 0; the only one is a cache in one file."""

    number: int
    total: int

    @classmethod
    def of(cls, path: Path) -> "Shard | None":
        """Return the shard that a file, finished or not, is by its name."""
        match = _NAME.match(path.name)
        return cls(int(match[1]), int(match[2])) if match else None

    @property
    def options(self) -> str:
        """The options of `captioning extract` that make it."""
        return f"num_shards={self.total} shard={self.number}"

    def path(self, folder: Path) -> Path:
        """Return its file in the folder of the cache, or the only file.

        Raises:
            InputError: there is a file in place of the folder.
        """
        if self.total == 1:
            return folder
        if folder.is_file():
            raise InputError(
                f"{printable(folder)} is one feature file and no folder of shards; leave out num_shards=, "
                "delete the file, or give features.path=<another>"
            )
        return folder / f"{self.number:05d}-of-{self.total:05d}.h5"

    def share(self, images: Mapping[str, Path], batch_size: int) -> dict[str, Path]:
        """Return its part of the images.

        Raises:
            InputError: there is none for some shard.
        """
        batches = -(-len(images) // batch_size)
        if self.total > max(batches, 1):  # refused by every shard, before any has worked
            raise InputError(
                f"num_shards={self.total} is too many: {len(images)} images are {batches} batches of "
                f"{batch_size}; give at most num_shards={batches}, or a smaller features.run.batch_size="
            )
        return {
            image_id: images[image_id]
            for position, image_id in enumerate(images)
            if position // batch_size % self.total == self.number
        }


def choose_shards(num_shards: int | None, shard: int | None, *, rank: int, processes: int) -> list[Shard]:
    """Return the shards that a process makes: the one given, or else its part of all.

    Args:
        num_shards: of the cache; None for as many as processes, and for one file where there is one process.
        shard: number of one, from 0.
        rank: of this process among those that were started together.
        processes: their number.

    Raises:
        InputError: numbers that do not go together.
    """
    for name, number, least in (("num_shards", num_shards, 1), ("shard", shard, 0)):
        if number is not None and (type(number) is not int or number < least):
            raise InputError(f"{name}={number} must be a whole number from {least}")
    total = num_shards or processes
    if shard is None:
        return [Shard(number, total) for number in range(rank, total, processes)]
    if num_shards is None or shard >= num_shards:
        raise InputError(f"shard={shard} must be less than num_shards={num_shards}; the first one is 0")
    return [Shard(shard, num_shards)]


def files_of(path: Path) -> list[Path]:
    """Return the files of a cache, whether they are there or not: the path itself, or all shards in a folder.

    Raises:
        InputError: the folder has shards of two divisions.
    """
    if not path.is_dir():
        return [path]
    found = {shard.total for file in path.iterdir() if (shard := Shard.of(file))}
    if len(found) > 1:
        counts = " and ".join(str(count) for count in sorted(found))
        raise InputError(
            f"{printable(path)} has files of a division into {counts} shards; delete those of one division"
        )
    count = found.pop() if found else 0
    return [Shard(number, count).path(path) for number in range(count)] or [path]


def complete_files_of(path: Path) -> list[Path]:
    """Return the files of a cache.

    Raises:
        InputError: a shard is missing or unfinished; names the command that makes it.
    """
    files = files_of(path)
    missing = [shard for file in files if (shard := Shard.of(file)) and not file.is_file()]
    if missing:
        numbers = ",".join(str(shard.number) for shard in missing)
        multirun = "-m " if len(missing) > 1 else ""
        raise InputError(
            f"{printable(path)} lacks {len(missing)} of its {missing[0].total} shards; make them with "
            f"python -m captioning.extract {multirun}num_shards={missing[0].total} shard={numbers} and the "
            "same experiment=... or data=... features=... options"
        )
    return files
