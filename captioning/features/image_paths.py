"""The pictures that a user means by a file, a folder, a pattern, or a list of them."""

import glob
from collections.abc import Sequence
from pathlib import Path

from captioning.errors import InputError
from captioning.files import IMAGE_SUFFIXES


def find_images(names: str | Sequence[str]) -> list[Path]:
    """Resolve files, folders and patterns to paths, in the order they are given.

    Raises:
        InputError: a folder without pictures, or a pattern that nothing matches.
    """
    found: list[Path] = []
    for name in [names] if isinstance(names, str | int | float) else names:
        path = Path(str(name)).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise InputError(f"the folder {path} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
            found += inside
        elif path.exists() or not glob.has_magic(str(path)):
            found.append(path)
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            if not matches:
                raise InputError(f"no file matches {path}")
            found += matches
    return found
