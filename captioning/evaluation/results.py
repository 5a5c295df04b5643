"""Result files in COCO's format: a JSON list of `{"image_id": 42, "caption": "a dog"}`, one entry per image.

The COCO evaluation server takes the same files. They may come from any system, so every entry is checked
before anything is scored. Captions are returned in the order of the references' images.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from captioning.errors import InputError
from captioning.evaluation.references import References
from captioning.files import IMAGE_SUFFIXES

_MAX_SHOWN = 3  # offenders of each kind that a message names
_EMPTY = "empty captions"


def results_json(captions: Mapping[str, str] | Mapping[str, list[str]]) -> str:
    """Convert captions by image id to the text of a result file, one entry a line.

    Ids that are plain integers are written as integers, as COCO has them. Lists of captions, which the format
    does not know, stand under `captions` instead of `caption`.
    """
    entries = [
        {"image_id": _as_integer(image_id), "caption" if isinstance(value, str) else "captions": value}
        for image_id, value in captions.items()
    ]
    return "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries) + "\n]\n"


def _as_integer(image_id: str) -> int | str:
    try:
        # "007" and "1_000" are valid for int() but would not be read back as the same id.
        return int(image_id) if str(int(image_id)) == image_id else image_id
    except ValueError:
        return image_id


def read_results(
    path: str | Path,
    image_ids: Collection[str],
    *,
    optional: Collection[str] = (),
    allow_empty: bool = False,
) -> dict[str, str]:
    """Read a result file.

    Args:
        path: the file.
        image_ids: of the references; every one needs exactly one caption.
        optional: ids of images without references; they may have a caption, which is not returned.
        allow_empty: whether empty captions are accepted, to be scored as such.

    Returns:
        captions by image id, in the order of `image_ids`.

    Raises:
        InputError: not a JSON list of entries; unknown, missing or duplicate image ids; captions that are
            empty or not text. The message counts the offenders of each kind and names the first ones.
    """
    captions: dict[str, str] = {}
    offenders: dict[str, list[str]] = {}
    known = {*image_ids, *optional}
    # Go through the whole file, so that one message lists all problems.
    for number, entry in enumerate(_read_list(path), start=1):
        image_id, problem = _check(entry, known, captions, allow_empty)
        if problem:
            shown = f"number {number}" if image_id is None else _shorten(image_id)
            offenders.setdefault(problem, []).append(shown)
        if isinstance(image_id, str) and image_id in known:
            captions[image_id] = entry["caption"]
    if missing := [_shorten(image_id) for image_id in image_ids if image_id not in captions]:
        offenders["images without a caption"] = missing
    if offenders:
        problems = "; ".join(_summary(problem, shown) for problem, shown in offenders.items())
        remedy = f"; needed is one entry for each of the {len(image_ids)} images of the references"
        empty = ", or allow_empty=true to score empty captions as such" if _EMPTY in offenders else ""
        raise InputError(f"{path} has {problems}{remedy}{empty}")
    return {image_id: captions[image_id] for image_id in image_ids}


def read_systems(
    paths: Sequence[str], references: References, *, allow_empty: bool
) -> dict[str, dict[str, str]]:
    """Read one result file or more: captions by image id, by the systems' names."""
    return {
        name: read_results(
            path, references.records, optional=references.without_captions, allow_empty=allow_empty
        )
        for name, path in zip(system_names(paths), paths, strict=True)
    }


def system_names(paths: Sequence[str | Path]) -> list[str]:
    """Name each result file by its stem, with as many of its folders as tell the files apart."""
    parts = [Path(path).absolute().with_suffix("").parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({number})" for number, part in enumerate(parts, start=1)]


def _check(
    entry: Any, known: Collection[str], captions: Mapping[str, str], allow_empty: bool
) -> tuple[Any, str]:
    """Return the entry's image id, as text where it is valid, and the problem with the entry, or ""."""
    if not isinstance(entry, dict) or not {"image_id", "caption"} <= entry.keys():
        return None, "entries that are no record of image_id and caption"
    image_id, caption = entry["image_id"], entry["caption"]
    if isinstance(image_id, bool) or not isinstance(image_id, int | str):
        return image_id, "image ids that are neither an integer nor text"
    image_id = str(image_id)
    if image_id not in known:
        if any(f"{image_id}{suffix}" in known for suffix in IMAGE_SUFFIXES):
            return image_id, "image ids without the suffix that the references' have"
        return image_id, "image ids that are unknown to the references"
    if image_id in captions:
        return image_id, "further captions of images that have one"
    if not isinstance(caption, str):
        return image_id, "captions that are not text"
    if any("\ud800" <= letter <= "\udfff" for letter in caption):
        return image_id, "captions with half a character (a lone surrogate)"
    return image_id, "" if caption.strip() or allow_empty else _EMPTY


def _summary(problem: str, shown: Sequence[str]) -> str:
    more = ", …" if len(shown) > _MAX_SHOWN else ""
    return f"{len(shown)} {problem} ({', '.join(shown[:_MAX_SHOWN])}{more})"


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _read_list(path: str | Path) -> list[Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"the result file {path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # bytes that are not UTF-8 are a ValueError too
        raise InputError(f"{path} is not JSON ({error}); is it whole?") from error
    if not isinstance(content, list):
        raise InputError(
            f'{path} is no result file: needed a list [{{"image_id": …, "caption": …}}, …], '
            f"found {_shorten(content)}"
        )
    return content
