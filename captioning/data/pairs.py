"""Pictures and captions of the user's own: a table of them, or a folder.

A table is a CSV file (separated by `,`, `;`, `|` or tabs), a TSV file or a JSONL file. A folder holds
captions in a text file beside each picture, or has the layout of Hugging Face: `metadata.jsonl` or
`metadata.csv` beside the pictures, or in subfolders named after the splits.
"""

import csv
import io
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captioning.data.records import (
    ID,
    SPLIT,
    TEXTS,
    Annotated,
    Place,
    Records,
    num_held_out,
    show,
    to_split,
)
from captioning.data.texts import parse_json, read_text
from captioning.errors import InputError
from captioning.files import IMAGE_SUFFIXES
from captioning.vocabulary import printable

_COLUMNS = {  # the names that a column goes by
    "image": ("image", "file_name", "filename", "image_name"),
    "caption": ("caption", "captions", "text", "sentence", "comment"),
    "split": ("split",),
}
_METADATA = ("metadata.jsonl", "metadata.csv")
_SUFFIX = "|".join(map(re.escape, IMAGE_SUFFIXES))
_NEXT_RECORD = re.compile(rf"\n[^\n]*({_SUFFIX})\"?\s*[,;|\t]", re.IGNORECASE)

TableRow = tuple[Place, dict[str, Any]]


def read_pairs(
    file: str | Path, images: str | Path | None = None, *, val_share: float = 0.1, seed: int = 0
) -> list[Annotated]:
    """Read pictures with captions from a CSV, TSV or JSONL file, or from a folder.

    A table has the columns `image` (or `file_name`), `caption` (or `text`, `sentence`) and possibly `split`;
    several lines may name the same image, and a JSONL caption may be a list. In a folder without metadata,
    `dog.txt` holds the captions of `dog.jpg`, one per line. Without splits a share of the images, drawn with
    the seed, is held out for validation.

    Args:
        file: a UTF-8 file whose first line names the columns (JSONL: whose lines are objects), or a folder.
        images: the folder that image names are relative to; that of the file by default.
        val_share: share of images held out, 0 to 1.
        seed: seeds that draw.

    Raises:
        InputError: no such file, or a record that is not a picture with captions.
    """
    path = Path(file)
    if not 0 <= val_share < 1:
        raise InputError(f"data.reader.val_share is {val_share}; needed is a share from 0 to below 1")
    records = Records(path, "a table of pictures and captions")
    folder = Path(images) if images is not None else path if path.is_dir() else path.parent
    checked = []
    for place, row in _rows_of_folder(path, records) if path.is_dir() else _rows_of_table(path, records):
        if row.get("split") in (None, ""):  # an empty cell is no split
            row.pop("split", None)
        name, texts, split = records.check(place, row, {"image": ID, "caption": TEXTS}, {"split": SPLIT})
        # `./a.jpg` is the picture `a.jpg`.
        checked.append((place, Path(name).as_posix(), texts, split, row.get("path")))

    if any(split for *_, split, _ in checked):
        drawn: set[str] = set()
        for place, _, _, split, _ in checked:
            if not split:
                raise records.error(place, "no split", "one in every record, or in none")
    else:
        names = list(dict.fromkeys(name for _, name, *_ in checked))
        drawn = set(random.Random(seed).sample(names, num_held_out(len(names), val_share)))
    for place, name, texts, split, picture in checked:
        split = split or ("val" if name in drawn else "train")
        records.add(name, picture or folder / name, split)
        if not texts:
            records.note("records left out that hold an empty list of captions", name)
        for text in texts:
            records.add_caption(place, name, split, " ".join(text.split()))
    return records.finish()


def _rows_of_folder(folder: Path, records: Records) -> Iterator[TableRow]:
    here = [folder / name for name in _METADATA if (folder / name).is_file()]
    below = [file for name in _METADATA for file in sorted(folder.glob(f"*/{name}"))]
    if len(here) > 1:
        raise InputError(f"{records.source} holds metadata.jsonl and metadata.csv; needed is one of them")
    if here:
        yield from _rows_of_metadata(here[0], records)
    elif below:
        for file in below:
            yield from _rows_of_split(file, records)
    else:
        yield from _rows_of_texts(folder, records)


def _rows_of_metadata(file: Path, records: Records) -> Iterator[TableRow]:
    """Read one table for all splits."""
    rows = list(_rows_of_table(file, records))
    _note_unused(file.parent, rows, records)
    # Without a column, pictures in `train/`, `test/`, … belong to the split of that name.
    folders = [Path(str(row["image"])).parts[:-1] for _, row in rows]
    splits = [_split_of(parts[0]) if parts else "" for parts in folders]
    in_subfolders = all(splits) and not any(row.get("split") for _, row in rows)
    for split, (place, row) in zip(splits, rows, strict=True):
        yield place, {**row, "split": split} if in_subfolders else row


def _rows_of_split(file: Path, records: Records) -> Iterator[TableRow]:
    """Read the table of one split, which stands in a subfolder with its pictures."""
    subfolder = file.parent.name
    if not (split := _split_of(subfolder)):
        raise InputError(
            f"{printable(file.parent)} is named after no split; needed is train, validation or test"
        )
    rows = list(_rows_of_table(file, records, f"{subfolder}/{file.name}"))
    _note_unused(file.parent, rows, records)
    for place, row in rows:
        image = row["image"]
        if isinstance(image, str) and image.strip():  # anything else is refused as it stands
            image = f"{subfolder}/{image}"
        yield place, {**row, "image": image, "split": split}


def _split_of(folder: str) -> str:
    """Return the split that a subfolder is named after, or nothing."""
    try:
        return to_split(folder)
    except ValueError:
        return ""


def _note_unused(folder: Path, rows: Sequence[TableRow], records: Records) -> None:
    names = {Path(str(row["image"])).as_posix() for _, row in rows}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name not in names:
            records.note("pictures left out that the metadata do not name", path.name)


def _rows_of_texts(folder: Path, records: Records) -> Iterator[TableRow]:
    """Pair `dog.jpg` with `dog.txt`; a file with a text is tried as a picture, whatever its suffix."""
    # Hidden files are no data of the user's: macOS puts a `._dog.jpg` beside `dog.jpg`.
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    files = [path for path in found if path.is_file()]
    texts = {path.stem: path for path in files if path.suffix.lower() == ".txt"}
    others = [path for path in files if path.suffix.lower() != ".txt"]
    pictures = [path for path in others if path.suffix.lower() in IMAGE_SUFFIXES]
    if without := [path.name for path in pictures if path.stem not in texts]:
        raise InputError(
            f"{records.source}: needed is metadata.jsonl, metadata.csv, or a .txt with captions beside each "
            f"picture, found {len(without)} pictures without one, first {printable(without[0])}"
        )
    known = {path.stem for path in pictures}
    for path in others:
        if path.suffix.lower() in IMAGE_SUFFIXES or (path.stem in texts and path.stem not in known):
            text = texts[path.stem]
            captions = [line for line in read_text(text).split("\n") if line.strip()]
            # The id is stored as text, which the bytes of a file name need not be.
            yield ("%s", text.name), {"image": printable(path.name), "caption": captions, "path": path}
        else:
            records.note("files left out that have neither a picture's suffix nor a .txt", path.name)
    for stem in sorted(texts.keys() - {path.stem for path in others}):
        records.note("texts left out that have no picture", texts[stem].name)
    for path in found:
        if path.is_dir():
            records.note("subfolders left out", path.name)


def _rows_of_table(path: Path, records: Records, name: str = "") -> Iterator[TableRow]:
    """Yield the image, caption and split of every record; `name` tells tables of one source apart."""
    suffix, place = path.suffix.lower(), f"{name.replace('%', '%%')} line %d".lstrip()
    if suffix == ".jsonl":
        yield from _rows_of_json_lines(path, place, records)
    elif suffix in (".csv", ".tsv"):
        yield from _rows_of_cells(path, place, records)
    else:
        found = suffix or "no suffix"
        raise InputError(f"{records.source}: needed is a folder, .csv, .tsv or .jsonl, found {found}")


def _rows_of_json_lines(path: Path, place: str, records: Records) -> Iterator[TableRow]:
    for number, line in enumerate(read_text(path).removesuffix("\n").split("\n"), start=1):
        if not line.strip():
            records.note("blank lines", f"line {number}")
            continue
        content = parse_json(line, path, number)
        if not isinstance(content, dict):
            raise records.error((place, number), show(content), "an object with image and caption")
        columns = _columns(list(content), (place, number), records)
        yield (place, number), {column: content[name] for column, name in columns.items()}


def _rows_of_cells(path: Path, place: str, records: Records) -> Iterator[TableRow]:
    text, is_tsv = read_text(path), path.suffix.lower() == ".tsv"
    delimiter = max(",;|\t", key=text.partition("\n")[0].count)
    cells = _tsv_cells(text) if is_tsv else _csv_cells(text, delimiter, place, records)
    _, header = next(cells, (1, []))
    header = [name.strip().lower() for name in header]
    columns = _columns(header, (place, 1), records)
    for number, row in cells:
        if not any(cell.strip() for cell in row):
            records.note("blank lines", f"line {number}")
            continue
        # A line of another length would lose a caption's end, or take it for the split.
        if len(row) != len(header):
            found = f"{len(row)} columns where the header has {len(header)}"
            remedy = "tabs between columns only" if is_tsv else f"captions with {delimiter!r} quoted"
            raise records.error((place, number), found, remedy)
        values = dict(zip(header, map(str.strip, row), strict=True))
        yield (place, number), {column: values[name] for column, name in columns.items()}


def _tsv_cells(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each line; TSV has no quoting, a quotation mark is part of the caption."""
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        yield number, line.split("\t")


def _csv_cells(text: str, delimiter: str, place: str, records: Records) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each record with the number of its first line."""
    # `strict` refuses a quotation mark that is never closed, which would swallow the rest of the file.
    options: dict[str, Any] = {"delimiter": delimiter, "strict": True, "skipinitialspace": True}
    reader = csv.reader(io.StringIO(text, newline=""), **options)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            found = f"cells that can't be separated ({error})"
            raise records.error((place, number), found, "every quotation mark closed") from error
        if any(_NEXT_RECORD.search(cell) for cell in row):
            found = "a quoted cell that holds the next record"
            raise records.error((place, number), found, "every quotation mark closed")
        yield number, row


def _columns(names: list[str], place: Place, records: Records) -> dict[str, str]:
    """Find which of the names of a table or a JSON object stand for image, caption and split."""
    found = {}
    for column, aliases in _COLUMNS.items():
        matching = [name for name in names if name.lower() in aliases]
        if len(matching) > 1:
            raise records.error(place, f"the columns {' and '.join(map(repr, matching))}", f"one {column}")
        if matching:
            found[column] = matching[0]
        elif column != "split":
            raise records.error(place, f"the columns {show(names)}", f"the column {column!r}")
    return found
