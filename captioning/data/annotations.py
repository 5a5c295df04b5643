"""Readers of annotation files, one a format, all giving `Annotated` records: pictures and their sentences.

Readers do not touch the pictures: a missing one is the extraction's business, which names it.
"""

import csv
import io
import json
import random
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from pycocotools.coco import COCO

from captioning.errors import InputError

_PICTURE_NAMES = (".jpg", ".jpeg", ".png")


class Annotated(NamedTuple):
    """One picture and its sentences.

    `split` is train, val or test. `caption_ids` are the file's own ids of the captions, where it has any.
    Only the post's caption-level split yields two records of one image, in different splits with different
    captions.
    """

    image_id: str
    path: Path
    split: str
    captions: tuple[str, ...]
    caption_ids: tuple[str, ...] = ()


def read_coco(annotations: str | Path, images: str | Path, split: str) -> list[Annotated]:
    """Read a COCO captions file of the 2014 or 2017 layout.

    Args:
        annotations: for example `annotations/captions_train2014.json`; keys beyond images and annotations are
            ignored.
        images: the folder of the pictures.
        split: the split that all of its images belong to.
    """
    content = _json(annotations)
    needed = {"images": ("id", "file_name"), "annotations": ("id", "image_id", "caption")}
    for part, keys in needed.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list) or any(key not in entry for entry in entries[:1] for key in keys):
            raise InputError(
                f"{annotations} is no COCO captions file: it needs a list {part!r} of records with "
                f"{', '.join(keys)}; captions_*.json of COCO has them, instances_*.json lacks them"
            )
    with redirect_stdout(io.StringIO()):
        coco = COCO()
        # Only these two: pycocotools takes a file with `categories` for one of object instances.
        coco.dataset = {part: content[part] for part in needed}
        coco.createIndex()
    folder, records = Path(images), []
    for image_id, image in coco.imgs.items():
        captions = [entry for entry in coco.imgToAnns.get(image_id, []) if entry["caption"].strip()]
        if captions:
            texts, ids = tuple(c["caption"] for c in captions), tuple(str(c["id"]) for c in captions)
            records.append(Annotated(str(image_id), folder / image["file_name"], split, texts, ids))
    return records


def read_coco_splits(
    root: str | Path, annotations: dict[str, str], images: dict[str, str]
) -> list[Annotated]:
    """Read one COCO captions file a split.

    Args:
        root: folder of the data set.
        annotations: the file of each split, relative to the root.
        images: the picture folder of each split, relative to the root.
    """
    parts = [
        read_coco(Path(root) / file, Path(root) / images[split], split) for split, file in annotations.items()
    ]
    return [record for part in parts for record in part]


def read_karpathy(annotations: str | Path, images: str | Path) -> list[Annotated]:
    """Read Karpathy's split file (`dataset_coco.json`, `dataset_flickr8k.json`); `restval` joins train."""
    content, folder, records = _json(annotations), Path(images), []
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{annotations} is no Karpathy split file: it needs a list 'images'")
    for position, image in enumerate(content["images"]):
        try:
            split = "train" if image["split"] == "restval" else image["split"]
            path = folder / image.get("filepath", "") / image["filename"]
            texts = tuple(sentence["raw"] for sentence in image["sentences"])
            image_id = str(image.get("cocoid", image["filename"]))
        except KeyError as error:
            raise InputError(
                f"{annotations}: image {position} lacks {error}; a Karpathy split file has it"
            ) from error
        records.append(Annotated(image_id, path, split, texts, tuple(map(str, image.get("sentids", ())))))
    return records


def read_flickr(
    tokens: str | Path,
    images: str | Path,
    splits: dict[str, str | Path],
    on_message: Callable[[str], None] | None = None,
) -> list[Annotated]:
    """Read the text form of Flickr8k and Flickr30k.

    Args:
        tokens: lines of `name.jpg#number<tab>sentence`.
        images: the folder of the pictures.
        splits: the list of image names of each split; images in no list are left out.
        on_message: called with a sentence about lines that name no picture (Flickr8k has five:
            `2258277193_586949ec62.jpg.1`).
    """
    captions: dict[str, list[str]] = {}
    surplus: dict[str, int] = {}
    for number, line in enumerate(_lines(tokens), start=1):
        name, tab, sentence = line.partition("\t")
        name, hash_sign, _ = name.partition("#")
        if not tab or not hash_sign:
            raise InputError(f"{tokens} line {number}: needed 'name.jpg#0<tab>sentence', found {line[:60]!r}")
        if not name.lower().endswith(_PICTURE_NAMES):
            surplus[name] = surplus.get(name, 0) + 1
        else:
            captions.setdefault(name, []).append(sentence)
    if surplus and on_message:
        on_message(
            f"{tokens}: left out {sum(surplus.values())} lines that name no picture ({', '.join(surplus)})"
        )
    records = []
    for split, file in splits.items():
        for name in (line.strip() for line in _lines(file)):
            if name not in captions:
                raise InputError(
                    f"{file} lists {name} but {tokens} has no caption of it; the two files don't match"
                )
            records.append(Annotated(name, Path(images) / name, split, tuple(captions[name])))
    return records


def read_pairs(
    file: str | Path, images: str | Path | None = None, *, val_share: float = 0.1, seed: int = 0
) -> list[Annotated]:
    """Read one's own data: CSV, TSV or JSONL with the columns `image`, `caption` and, if wanted, `split`.

    Several lines may name the same image. Without a split column a share of the images, drawn with the seed,
    is held out for validation.

    Args:
        file: UTF-8; the first line of a CSV or TSV names the columns.
        images: what relative image names are relative to; the file's own folder by default.
        val_share: share of images held out, 0 to 1.
        seed: of that draw.
    """
    folder = Path(images) if images is not None else Path(file).parent
    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for number, row in enumerate(_rows(file), start=1):
        if not row.get("image") or not row.get("caption"):
            raise InputError(
                f"{file} record {number}: needs the fields 'image' and 'caption', found {sorted(row)}"
            )
        captions.setdefault(row["image"], []).append(row["caption"])
        if row.get("split"):
            splits[row["image"]] = row["split"]
    undecided = [name for name in captions if name not in splits]
    drawn = (
        set(random.Random(seed).sample(undecided, round(len(undecided) * val_share))) if not splits else set()
    )
    return [
        Annotated(name, folder / name, splits.get(name, "val" if name in drawn else "train"), tuple(texts))
        for name, texts in captions.items()
    ]


def _rows(file: str | Path) -> Iterable[dict[str, str]]:
    path = Path(file)
    if path.suffix == ".jsonl":
        for number, line in enumerate(_lines(path), start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{file} line {number} is not JSON: {error}") from error
    elif path.suffix in (".csv", ".tsv"):
        yield from csv.DictReader(_lines(path), delimiter="\t" if path.suffix == ".tsv" else ",")
    else:
        raise InputError(f"{file}: needed .csv, .tsv or .jsonl, found {path.suffix or 'no suffix'}")


def _lines(file: str | Path) -> list[str]:
    return [line for line in _text(file).splitlines() if line.strip()]


def _json(file: str | Path) -> Any:
    try:
        return json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file} is not JSON (line {error.lineno}): {error.msg}; is the download complete?"
        ) from error


def _text(file: str | Path) -> str:
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(
            f"there is no annotation file {file}; set CAPTIONING_DATA to the folder of the data sets or the "
            "data.reader.* options to where yours lies"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error}") from error
