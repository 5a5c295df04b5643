"""The pictures that a user means by a file, a folder, a pattern, or a list of them.

In folders and among the matches of a pattern, a file with a suffix of `IMAGE_SUFFIXES` counts as a picture;
any other is one if Pillow knows its first bytes.
"""

import glob
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from captioning.errors import InputError
from captioning.features.file_kinds import is_url
from captioning.features.images import registered_formats
from captioning.files import IMAGE_SUFFIXES

_MAX_SHOWN = 20  # names that one message lists


class ImageFiles(NamedTuple):
    """Paths of pictures in the order in which they were given, and files of folders that are no pictures."""

    paths: list[Path]
    skipped: list[Path]

    def describe_skipped(self) -> str:
        """Count and name the files that were skipped, in a sentence."""
        count = f"{len(self.skipped)} files that are" if len(self.skipped) > 1 else "1 file that is"
        return f"skipped {count} not in a picture format that Pillow reads: {_listed(self.skipped)}"


def find_images(names: str | Sequence[str]) -> ImageFiles:
    """Resolve files, folders and patterns to paths.

    A file that is named itself is returned whether or not it exists; reading it says what is wrong.

    Raises:
        InputError: a URL, a folder without pictures, or a pattern that nothing matches.
    """
    found = ImageFiles([], [])
    for name in [names] if isinstance(names, str | int | float) else names:
        text = str(name)
        path = Path(text).expanduser()
        if path.is_dir():
            _add(found, path.iterdir(), f"the folder {path} holds no picture")
        elif path.exists() or not (is_url(text) or glob.has_magic(text)):
            found.paths.append(path)
        elif is_url(text):
            raise InputError(f"{text} is a URL; download it first, then give the file")
        else:
            matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
            if not matches:
                raise InputError(f"no file matches {path}")
            _add(found, matches, f"no picture matches {path}")
    return found


def _add(found: ImageFiles, candidates: Iterable[Path], problem: str) -> None:
    files = sorted(path for path in candidates if not path.is_dir())
    pictures = [path for path in files if _is_picture(path)]
    others = sorted({*files}.difference(pictures))
    if not pictures:
        there = f"; it has {_listed(others)}" if others else ""
        raise InputError(
            f"{problem} ({', '.join(IMAGE_SUFFIXES)} and others that Pillow reads){there}; for pictures in "
            "folders below give a pattern, such as 'image=folder/**/*.jpg'"
        )
    found.paths.extend(pictures)
    # Files such as .DS_Store belong to the system, not to the user.
    found.skipped.extend(path for path in others if not path.name.startswith("."))


def _is_picture(path: Path) -> bool:
    # macOS leaves files such as ._a.jpg beside a.jpg that are no pictures, so hidden files are looked into.
    if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
        return True
    if not path.is_file():  # opening a pipe would wait for its writer
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a large picture is warned about when it is read
            with Image.open(path, formats=registered_formats()):
                return True
    except Exception:  # the parsers of Pillow raise anything
        return False


def _listed(paths: Sequence[Path]) -> str:
    names = [os.fspath(path.name) for path in paths[:_MAX_SHOWN]]
    return ", ".join(names) + (f" and {len(paths) - _MAX_SHOWN} more" if len(paths) > _MAX_SHOWN else "")
