"""Records of pictures and captions, and the one place where everything that is read is checked.

A reader of a format states which fields it needs and of which kind (`ID`, `NAME`, `TEXT`, …), and adds what
it reads to `Records`. A wrong record ends the reading with the file, the record, what was found and what is
needed; what is left out (empty captions, blank lines) is counted and reported in one line.
"""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from captioning.data.texts import parse_json, read_text
from captioning.errors import InputError
from captioning.vocabulary import printable

log = logging.getLogger(__name__)

_SPLITS = {
    "train": "train", "training": "train", "restval": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# Control characters that are no white space, and those that reverse the text on a terminal.
_CONTROL = re.compile("[\x01-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069]")


class Annotated(NamedTuple):
    """One picture and its captions.

    `split` is train, val or test. `caption_ids` are the file's ids of the captions, if it has any. A picture
    without captions can be captioned, but is neither trained on nor scored. Only the post's caption-level
    split gives two records of one image, in different splits with different captions.
    """

    image_id: str
    path: Path
    split: str
    captions: tuple[str, ...]
    caption_ids: tuple[str, ...] = ()


class Kind(NamedTuple):
    """A kind of field: how messages describe it, and a function that raises ValueError for anything else."""

    needed: str
    convert: Callable[[Any], Any]


def _text(value: Any) -> str:
    if value is None:  # JSON null is an empty caption, which `Records` counts
        return ""
    if not isinstance(value, str):
        raise ValueError
    # Neither HDF5 nor the terminal takes these; `encode` fails on half of a surrogate pair.
    if "\0" in value or not (value.isascii() or value.encode()):
        raise ValueError
    return value


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return _text(value)


def _id(value: Any) -> str:
    if type(value) is int:  # not bool
        return str(value)
    if printable(_name(value)) != value:
        raise ValueError
    return str(value)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError
    return value


def _texts(value: Any) -> list[str]:
    return [_text(text) for text in value] if isinstance(value, list) else [_text(value)]


def _split(value: Any) -> str:
    return to_split(_name(value))


def _box(value: Any) -> tuple[float, float, float, float]:
    numbers = [_number(part) for part in _list(value)]
    x, y, width, height = numbers  # another count is a ValueError as well
    return x, y, x + width, y + height


def _number(value: Any) -> float:
    if type(value) not in (int, float):  # not bool
        raise ValueError
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    return number


def _side(value: Any) -> float:
    side = _number(value)
    if side <= 0:
        raise ValueError
    return side


def num_held_out(total: int, share: float) -> int:
    """Return how many of `total` are held out: one at least if any are, and not all, where there are two."""
    if total < 2 or not share:
        return 0
    return min(max(1, round(total * share)), total - 1)


def to_split(name: str) -> str:
    """Return train, val or test for the names that splits go by, such as `validation`, `dev` and `Train`.

    Raises:
        ValueError: a name that is none of them.
    """
    split = _SPLITS.get(name.strip().lower())
    if split is None:
        raise ValueError
    return split


TEXT = Kind("text without NUL and lone surrogates", _text)
TEXTS = Kind("text, or a list of texts, without NUL and lone surrogates", _texts)
NAME = Kind("the name of a file", _name)
ID = Kind("a whole number, or text without control characters", _id)
LIST = Kind("a list", _list)
BOX = Kind("four numbers: x, y, width, height in pixels", _box)
SIDE = Kind("a number of pixels above 0", _side)
SPLIT = Kind("train, val (also validation, dev) or test", _split)


Place = tuple[str, int | str]  # where a record is: a format such as "line %d", and its number or name


class Records:
    """The records of one source while it is read.

    Args:
        source: file or folder, for messages.
        form: what it should be, for messages: "a Karpathy split file".
    """

    def __init__(self, source: str | Path, form: str) -> None:
        self.source, self.form = printable(source), form
        self._pictures: dict[tuple[str, str], tuple[Path, list[str], list[str]]] = {}
        self._paths: dict[str, Path] = {}
        self._notes: dict[str, list[str]] = {}

    def error(self, place: Place, found: str, needed: str) -> InputError:
        """Build the error for one record."""
        return InputError(f"{self.source}, {_at(place)}: found {found}; {self.form} needs {needed}")

    def check(
        self,
        place: Place,
        record: Any,
        fields: Mapping[str, Kind],
        optional: Mapping[str, Kind] | None = None,
    ) -> list[Any]:
        """Return the converted fields of one record: those of `fields`, then the optional ones or None.

        Fields that nobody asks for are ignored.

        Raises:
            InputError: the record is no object, or a field is missing or of another kind.
        """
        if not isinstance(record, dict):
            raise self.error(place, show(record), f"an object with {', '.join(fields)}")
        if not fields.keys() <= record.keys():
            key = next(key for key in fields if key not in record)
            raise self.error(place, f"no {key!r} among {show(record)}", f"{key}: {fields[key].needed}")
        values = []
        for key, kind in ({**fields, **optional} if optional else fields).items():
            try:
                values.append(kind.convert(record[key]) if key in record else None)
            except ValueError:
                raise self.error(place, f"{key} = {show(record[key])}", f"{key}: {kind.needed}") from None
        return values

    def note(self, what: str, example: str) -> None:
        """Count something odd; `finish` reports how often it came."""
        self._notes.setdefault(what, []).append(example)

    def add(self, image_id: str, path: Path, split: str) -> bool:
        """Add a picture; False if it is there already.

        Raises:
            InputError: the id already means another picture.
        """
        if (known := self._paths.setdefault(image_id, path)) != path:
            raise _two_pictures(self.source, image_id, known, path)
        is_new = (image_id, split) not in self._pictures
        if is_new:
            self._pictures[image_id, split] = path, [], []
        return is_new

    def add_caption(
        self, place: Place, image_id: str, split: str, text: str, caption_id: str | None = None
    ) -> None:
        """Add a caption of a picture that was added before.

        An empty one is counted and left out; control characters in it are counted and become spaces.

        Raises:
            InputError: there is no such picture.
        """
        if (picture := self._pictures.get((image_id, split))) is None:
            raise self.error(place, f"a caption of image {image_id}", "the id of a picture that it lists")
        if _CONTROL.search(text):
            self.note("captions with control characters, now spaces", _at(place))
            text = _CONTROL.sub(" ", text)
        if not text.strip():
            self.note("empty captions left out", _at(place))
            return
        _, captions, caption_ids = picture
        captions.append(text)
        if caption_id is not None:
            caption_ids.append(caption_id)

    def finish(self) -> list[Annotated]:
        """Log what was counted, a line each, and return the records in the order in which they were added.

        Raises:
            InputError: there is none.
        """
        for what, examples in self._notes.items():
            different = list(dict.fromkeys(examples))
            listed = ", ".join([*map(printable, different[:3]), *(["…"] if len(different) > 3 else [])])
            log.warning("%s: %d %s: %s", self.source, len(examples), what, listed)
        if not self._pictures:
            raise InputError(f"{self.source} has no pictures; {self.form} is needed")
        return [
            Annotated(image_id, path, split, tuple(captions), tuple(caption_ids))
            for (image_id, split), (path, captions, caption_ids) in self._pictures.items()
        ]


def one_picture_per_id(records: Sequence[Annotated], source: str | Path) -> list[Annotated]:
    """Check records of several files: an id may come again, but only for the same picture.

    Raises:
        InputError: one id means two pictures, whose features would be mixed up.
    """
    paths: dict[str, Path] = {}
    for record in records:
        if (known := paths.setdefault(record.image_id, record.path)) != record.path:
            raise _two_pictures(source, record.image_id, known, record.path)
    return list(records)


def _two_pictures(source: str | Path, image_id: str, first: Path, second: Path) -> InputError:
    return InputError(
        f"{printable(source)}: the id {image_id} means two pictures, {printable(first)} and "
        f"{printable(second)}; give every picture an id of its own"
    )


def read_lists(file: str | Path, records: Records, *names: str) -> dict[str, Any]:
    """Read a JSON object of which some keys must be lists.

    Raises:
        InputError: it is something else.
    """
    content = parse_json(read_text(file), file)
    for name in names:
        if not isinstance(content, dict) or not isinstance(content.get(name), list):
            raise InputError(
                f"{records.source} is not {records.form}: it needs a list {name!r}, found {show(content)}"
            )
    return content


def show(value: Any) -> str:
    """Show a value in a message: short, and safe for the terminal."""
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, Mapping | list):
        value = list(value)[:8]
    text = printable(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."


def _at(place: Place) -> str:
    return printable(place[0] % place[1])
