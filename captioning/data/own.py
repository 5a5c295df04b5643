"""One's own pictures and sentences: a table of them, or a folder with a text file beside each picture."""

import csv
import io
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from captioning.data.annotations import Annotated, read_text
from captioning.errors import InputError

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_TABLES = {".csv": ",", ".tsv": "\t"}


def read_pairs(
    file: str | Path, images: str | Path | None = None, *, val_share: float = 0.1, seed: int = 0
) -> list[Annotated]:
    """Read one's own data: a CSV, TSV or JSONL file, or a folder.

    A table has the columns `image`, `caption` and, if wanted, `split`; several lines may name the same image,
    and a JSONL caption may be a list. In a folder, `dog.txt` holds the captions of `dog.jpg`, one a line.
    Without splits a share of the images, drawn with the seed, is held out for validation.

    Args:
        file: UTF-8, whose first line names the columns; or the folder.
        images: what relative image names are relative to; the file's own folder by default.
        val_share: share of images held out, 0 to 1.
        seed: of that draw.

    Raises:
        InputError: no such file, or something in it that is no picture with a caption.
    """
    path = Path(file)
    if not 0 <= val_share < 1:
        raise InputError(f"data.reader.val_share is {val_share}; needed is a share from 0 to below 1")
    folder = Path(images) if images is not None else path if path.is_dir() else path.parent
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for number, row in enumerate(_of_folder(path) if path.is_dir() else _rows(path), start=1):
        name, texts, split = _checked(f"{file} record {number}", row)
        captions.setdefault(name, []).extend(texts)
        if split:
            splits[name] = split
    if not captions:
        raise InputError(f"{file} has no records of 'image' and 'caption'")
    drawn: set[str] = set()
    if not splits:
        drawn = set(random.Random(seed).sample(list(captions), round(len(captions) * val_share)))
    return [
        Annotated(name, folder / name, splits.get(name, "val" if name in drawn else "train"), tuple(texts))
        for name, texts in captions.items()
    ]


def _checked(where: str, row: Any) -> tuple[str, list[str], str]:
    """Give a record's image, captions and split."""
    if not isinstance(row, Mapping) or not row.get("image") or not row.get("caption"):
        found = sorted(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise InputError(f"{where}: needs the fields 'image' and 'caption', found {found}")
    texts = row["caption"] if isinstance(row["caption"], list) else [row["caption"]]
    if not isinstance(row["image"], str | int) or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"{where}: image must be a name and caption text (or a list of texts), found {row!r}"
        )
    return str(row["image"]), [" ".join(text.split()) for text in texts], str(row.get("split") or "")


def _of_folder(folder: Path) -> list[dict[str, Any]]:
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)
    without = [path.name for path in pictures if not path.with_suffix(".txt").is_file()]
    if not pictures or without:
        told = f"{len(without)} pictures without one, first {without[0]}" if without else "no picture"
        raise InputError(f"{folder}: beside each picture needs a .txt with its captions, found {told}")
    return [
        {"image": path.name, "caption": [line for line in read_text(text).splitlines() if line.strip()]}
        for path in pictures
        for text in [path.with_suffix(".txt")]
    ]


def _rows(path: Path) -> Iterable[Any]:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            try:
                if line.strip():
                    yield json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path} line {number} is not JSON: {error}") from error
    elif suffix in _TABLES:
        table = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=_TABLES[suffix])
        header = [name.strip().lower() for name in next(table, [])]
        yield from (dict(zip(header, map(str.strip, row), strict=False)) for row in table if row)
    else:
        raise InputError(f"{path}: needed a folder, .csv, .tsv or .jsonl, found {suffix or 'no suffix'}")
