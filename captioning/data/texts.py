"""Reading the text and the JSON of annotation files, with one clear error for whatever they hold instead."""

import json
from pathlib import Path
from typing import Any

from captioning.errors import InputError
from captioning.vocabulary import printable


def read_text(file: str | Path) -> str:
    """Read a UTF-8 file, with or without byte order mark.

    Raises:
        InputError: there is none, or it is something else.
    """
    name = printable(file)
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(
            f"there is no annotation file {name}; set the data.reader.* options to where yours is, or "
            "CAPTIONING_DATA to the folder of the data sets"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text ({error}); save it as UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        raise InputError(f"{name} can't be read as an annotation file: {error}") from error


class _TooLong:
    """Stands for a whole number that Python does not convert, for lack of limits to its time."""

    def __init__(self, digits: str) -> None:
        self.count = len(digits.lstrip("-"))

    def __repr__(self) -> str:
        return f"a number of {self.count:,} digits"


def _integer(digits: str) -> int | _TooLong:
    try:
        return int(digits)
    except ValueError:
        return _TooLong(digits)


def parse_json(text: str, file: str | Path, first_line: int = 1) -> Any:
    """Parse JSON; a key may not come twice in one object, since one of its values would be lost.

    A whole number of thousands of digits is read as something that no field takes, so that whoever knows the
    record refuses it there.

    Args:
        text: the whole file, or a line of it.
        file: for messages.
        first_line: where the text starts in the file.

    Raises:
        InputError: it is not JSON, or nested too deeply.
    """
    name = printable(file)
    try:
        try:
            return json.loads(text, object_pairs_hook=_unique)
        except json.JSONDecodeError:
            raise
        except ValueError:  # rarely: a function for each number takes time
            return json.loads(text, object_pairs_hook=_unique, parse_int=_integer)
    except json.JSONDecodeError as error:
        line = error.lineno + first_line - 1
        raise InputError(f"{name} is not JSON (line {line}): {error.msg}; is the file complete?") from error
    except RecursionError as error:
        raise InputError(f"{name} is nested too deeply for an annotation file") from error
    except ValueError as error:  # a repeated key
        raise InputError(f"{name} (from line {first_line}): {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} comes twice")
    return result
