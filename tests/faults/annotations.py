"""Malformed annotation files for every reader: each record is right, is refused, or is counted in a warning."""

import copy
import json
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from captioning.data import (
    Annotated,
    read_coco,
    read_coco_splits,
    read_flickr,
    read_karpathy,
    read_pairs,
    read_toy,
    sample_captions,
)
from captioning.data.summary import log_summary, log_words
from captioning.errors import InputError
from captioning.evaluation.references import References
from captioning.evaluation.results import read_results
from captioning.tokenizers import Words
from tests.faults.children import in_children
from tests.faults.settings import Settings
from tests.faults.tally import Outcome, Tally

IDS = ("7", "8", "9")
DEEP = object()  # stands for JSON that is nested ten thousand times
VALUES: tuple[Any, ...] = (
    None, "", " ", "text", 0, -1, 5, 1.5, float("nan"), float("inf"), True, [], {}, [1], [None], {"a": 1},
    10**30, "\ud800", "a\0b", "\x1b[31mred", "\u202etfel", "x" * 100_000, DEEP, "5", "../../etc/passwd",
)  # fmt: skip


class Case(NamedTuple):
    """One file: its content, whether a reader can know that it is wrong, and what was done to it."""

    content: bytes
    is_fault: bool
    name: str


class Source(NamedTuple):
    """One format: the file that is attacked, its sound content, and the reading of it.

    read: returns something that compares equal as long as nothing of weight has changed.
    texts: keys whose value may be any text.
    free: keys whose value may be any text or whole number, or be left out.
    """

    name: str
    file: Path
    content: Any
    read: Callable[[], Any]
    texts: tuple[str, ...] = ()
    free: tuple[str, ...] = ()


def coco(ids: Sequence[int] = (7, 8, 9)) -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{i}.jpg", "height": 3} for i in ids]
    captions = [
        {"id": 10 * i + n, "image_id": i, "caption": f"a dog {n} of {i}"} for i in ids for n in (0, 1)
    ]
    return {"info": {"year": 2014}, "images": images, "annotations": captions}


def karpathy() -> dict[str, Any]:
    images = [
        {
            "filename": f"{i}.jpg", "split": split, "imgid": i, "cocoid": i, "filepath": "train2014", "sentids": [i, i + 10],
            "sentences": [{"raw": f"a dog {n} of {i}", "tokens": ["a"], "sentid": i + 10 * n} for n in (0, 1)],
        }
        for i, split in ((7, "train"), (8, "restval"), (9, "val"))
    ]  # fmt: skip
    return {"images": images, "dataset": "coco"}


def outline(records: Sequence[Annotated]) -> list[Any]:
    """Reduce records to what no change of one caption's text or id can touch, and warn as every run does."""
    splits: dict[str, list[Annotated]] = {}
    for record in records:
        splits.setdefault(record.split, []).append(record)
    log_summary("data", splits)
    log_words("data", splits, Words(), max_words=None)
    return sorted((r.image_id, r.path.as_posix(), r.split, len(r.captions)) for r in records)


def sources(folder: Path) -> list[Source]:
    """Write a sound data set of every format into a folder of its own."""
    made: list[Source] = []

    def add(
        name: str,
        file: str,
        content: Any,
        reader: Callable[..., Any],
        texts: tuple[str, ...] = (),
        free: str = "",
    ) -> None:
        path = folder / name.replace(" ", "_") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        made.append(Source(name, path, content, partial(reader, path), texts, tuple(free.split())))

    def write(name: str, file: str, content: str) -> None:
        path = folder / name.replace(" ", "_") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")

    caption, lines = ("caption",), "7.jpg\n8.jpg\n"
    add("coco", "c.json", coco(), lambda p: outline(read_coco(p, "i", "train")), (*caption, "file_name"))
    write("coco splits", "val.json", json.dumps(coco((17, 18))))
    names = {"train": "train.json", "val": "val.json"}
    splits = partial(read_coco_splits, annotations=names, images={"train": "a", "val": "b"})
    add("coco splits", "train.json", coco(), lambda p: outline(splits(p.parent)), (*caption, "file_name"))
    texts = ("raw", "filename")
    add("karpathy", "k.json", karpathy(), lambda p: outline(read_karpathy(p, "i")), texts, "cocoid filepath")
    sample = partial(sample_captions, number=3, val_share=0.4, by="image", seed=0)
    drawn = lambda p: len(sample(partial(read_coco, p, "i", "train"))) > 0  # noqa: E731
    add("sample", "c.json", coco(), drawn, (*caption, "file_name"))
    toy = {**coco(), "info": {"seed": 0}}
    drawn_with = {"version": 2, "scenes": {"train": 3}, "seed": 0}
    write("toy", "made.json", json.dumps(drawn_with))
    read = partial(read_toy, scenes={"train": 3}, seed=0)
    add("toy", "captions_train.json", toy, lambda p: outline(read(p.parent)), (*caption, "file_name"))
    write("toy made", "captions_train.json", json.dumps(toy))
    add("toy made", "made.json", drawn_with, lambda p: outline(read(p.parent)))

    tokens = "".join(f"{i}.jpg#{n}\ta dog {n} of {i}\n" for i in (7, 8, 9) for n in (0, 1))
    for name in ("flickr", "flickr list"):
        write(name, "t.txt", tokens)
        write(name, "val.txt", "9.jpg\n")
        write(name, "l.txt", lines)

    def flickr(path: Path) -> list[Any]:
        root = path.parent
        lists = {"train": root / "l.txt", "val": root / "val.txt"}
        return outline(read_flickr(root / "t.txt", root / "i", lists))

    add("flickr", "t.txt", tokens, flickr)
    add("flickr list", "l.txt", lines, flickr)

    rows = [
        (f"{i}.jpg", f"a dog {n} of {i}", s)
        for i, s in ((7, "train"), (8, "train"), (9, "val"))
        for n in (0, 1)
    ]
    for suffix, separator in (("csv", ","), ("csv", ";"), ("tsv", "\t")):
        table = "\n".join(separator.join(row) for row in (("image", "caption", "split"), *rows)) + "\n"
        add(f"table {suffix} {ord(separator)}", f"t.{suffix}", table, lambda p: outline(read_pairs(p)))
    entries = [dict(zip(("image", "caption", "split"), row, strict=True)) for row in rows]
    add("jsonl", "t.jsonl", entries, lambda p: outline(read_pairs(p)), caption, "image")
    named = [{"file_name": e["image"], "text": e["caption"]} for e in entries]
    for name in ("7.jpg", "8.jpg", "9.jpg"):
        write("hugging face", name, "")
        write("folder", name, "")
        write("folder", f"{name[0]}.txt", "a dog\na cat\n")
    inside = partial(read_pairs, val_share=0.0)
    add("hugging face", "metadata.jsonl", named, lambda p: outline(inside(p.parent)), ("text",), "file_name")
    add("folder", "8.txt", "a dog\na cat\n", lambda p: outline(inside(p.parent)))

    results = [{"image_id": int(i), "caption": f"a dog of {i}"} for i in IDS]
    add("results", "r.json", results, lambda p: list(read_results(p, IDS)), caption)
    references = References.of("coco", [Annotated(i, Path(i), "val", (f"a dog {i}",)) for i in IDS], "val")
    stored = folder / "frequencies" / "f.json"
    stored.parent.mkdir()
    counted = references.with_frequencies(save_to=stored).frequencies
    assert counted is not None
    content = json.loads(stored.read_text())
    add(
        "frequencies",
        "f.json",
        content,
        lambda p: weights(references.with_frequencies(p)),
        ("source", "words"),
        "num_documents count",
    )
    return made


def weights(references: References) -> Any:
    frequencies = references.frequencies
    assert frequencies is not None
    return frequencies.num_documents, [count.tolist() for count in frequencies.counts]


def nodes(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a JSON tree."""
    yield path
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in children:
        yield from nodes(value, (*path, key))


def dump(content: Any, source: Source, **changes: Any) -> bytes:
    if isinstance(content, list) and source.file.suffix == ".jsonl":
        text = "".join(json.dumps(entry) + "\n" for entry in content)
    else:
        text = json.dumps(content)
    return text.replace('"<deep>"', "[" * 10_000 + "]" * 10_000).encode()


def json_cases(source: Source) -> Iterator[Case]:
    """Replace every value by every odd one, and leave out or repeat every entry."""
    for path in nodes(source.content):
        for number, value in enumerate(VALUES):
            tree = copy.deepcopy(source.content)
            new = "<deep>" if value is DEEP else value
            if not path:
                tree = new
            else:
                parent = _at(tree, path[:-1])
                old, parent[path[-1]] = parent[path[-1]], new
                if type(old) is type(new) and old == new:
                    continue
            is_fault = not _is_right(value, path, source)
            yield Case(dump(tree, source), is_fault, f"{_name(path)} = value {number}, {value!r:.20}")
        if path:
            tree = copy.deepcopy(source.content)
            del _at(tree, path[:-1])[path[-1]]
            # Nothing tells that a list once had another entry.
            is_fault = not isinstance(path[-1], int) and path[-1] not in source.free
            yield Case(dump(tree, source), is_fault, f"{_name(path)} left out")
            tree = copy.deepcopy(source.content)
            parent = _at(tree, path[:-1])
            if isinstance(parent, list):
                parent.append(copy.deepcopy(parent[path[-1]]))
                yield Case(dump(tree, source), False, f"{_name(path)} twice")
            else:
                old = json.dumps({path[-1]: parent[path[-1]]})[1:-1]
                text = dump(tree, source).decode()
                yield Case(
                    text.replace(old, f"{old}, {old}", 1).encode(), False, f"{_name(path)}, the key twice"
                )


def _is_right(value: Any, path: Sequence[Any], source: Source) -> bool:
    """Whether a value could as well have been meant."""
    keys = path[-2:] if path and isinstance(path[-1], int) else path[-1:]
    is_free = any(key in source.free for key in keys) and not (keys[0] == "count" and value == -1)
    if isinstance(value, str):
        is_text = value.strip() != "" and "\0" not in value and value != "\ud800"
        return is_free or (is_text and any(key in source.texts for key in path[-2:]))
    return is_free and (value is None or type(value) is int)


def text_cases(source: Source, text: bytes, generator: random.Random) -> Iterator[Case]:
    """Damage a file as disks, editors and spreadsheets do."""
    yield Case(b"", True, "empty")
    yield Case(b"\n\n", True, "blank")
    yield Case(b"\0" * 100, True, "zeros")
    yield Case(b"\x89PNG\r\n\x1a\n" + bytes(range(256)), True, "a picture")
    yield Case(b"\x1f\x8b\x08\0" + bytes(range(128)), True, "an archive")
    yield Case(
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
        source.name != "folder",
        "a Git LFS pointer",
    )
    yield Case(b"<html><body>404</body></html>", source.name != "folder", "a page")
    yield Case(b"\xef\xbb\xbf" + text, False, "with a byte order mark")
    yield Case(text.replace(b"\n", b"\r\n"), False, "with the line ends of Windows")
    yield Case(text.decode().encode("utf-16"), True, "UTF-16")
    yield Case(text.replace(b"dog", "hündin".encode("latin-1")), source.name != "flickr list", "Latin-1")
    yield Case(text.replace(b"dog", b'"dog'), False, "with quotation marks")
    yield Case(text.replace(b"dog", b"dog, running"), False, "with commas")
    yield Case(text.replace(b"dog", b"dog\trunning"), False, "with tabs")
    yield Case(text.replace(b"dog", b"dog\0"), False, "with NUL")
    for number in range(40):
        yield Case(text[: generator.randrange(1, len(text))], False, f"truncation {number}")
    for number in range(40):
        changed = bytearray(text)
        changed[generator.randrange(len(text))] ^= 1 << generator.randrange(8)
        yield Case(bytes(changed), False, f"flipped bit {number}")
    for number in range(20):
        changed = bytearray(text)
        start = generator.randrange(len(text))
        changed[start:start] = generator.choice(
            (b"\n", b'"', b",", b"\t", b";", b"\xff", b"{", b"]", b"\0", b"\x1b")
        )
        yield Case(bytes(changed), False, f"insertion {number}")


def _at(tree: Any, path: Sequence[Any]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _name(path: Sequence[Any]) -> str:
    return ".".join(map(str, path)) or "all of it"


class Warnings(logging.Handler):
    """Collects what the program warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def judge(source: Source, case: Case, expected: Any) -> tuple[Outcome, str]:
    """Read one file; what differs silently is lost if a reader could have known."""
    warnings = Warnings()
    logging.getLogger("captioning").addHandler(warnings)
    try:
        found = source.read()
    except InputError as error:
        return Outcome.REPORTED, str(error)
    finally:
        logging.getLogger("captioning").removeHandler(warnings)
    if found == expected:
        return Outcome.SURVIVED, ""
    if warnings.messages:
        return Outcome.REPORTED, warnings.messages[0]
    if case.is_fault:
        return Outcome.LOST, f"read as {str(found)[:200]}"
    return Outcome.SURVIVED, "as it now stands"


def run(settings: Settings) -> Iterator[Tally]:
    """Read every malformed file of every format."""
    made = sources(settings.room("annotations"))
    cases: list[tuple[Source, Case]] = []
    expected = {}
    for source in made:
        generator = settings.generator(source.name, 0)
        is_json = not isinstance(source.content, str)
        sound = dump(source.content, source) if is_json else source.content.encode()
        source.file.write_bytes(sound)
        expected[source.name] = source.read()
        found = [*(json_cases(source) if is_json else ()), *text_cases(source, sound, generator)]
        cases += [(source, case) for case in found]
    chosen = sorted(
        settings.generator("annotations", 0).sample(range(len(cases)), len(settings.cases(len(cases))))
    )

    def check(number: int) -> tuple[Outcome, str]:
        source, case = cases[number]
        sound = source.file.read_bytes()
        source.file.write_bytes(case.content)
        try:
            return judge(source, case, expected[source.name])
        finally:
            source.file.write_bytes(sound)

    def describe(number: int) -> str:
        source, case = cases[number]
        return f"{number} {source.name}: {case.name}"

    numbers = [settings.only] if settings.only is not None else chosen
    yield Tally(f"annotation files of {len(made)} readers").take(in_children(numbers, check, name=describe))
