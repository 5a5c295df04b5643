"""Readers of annotation files, one a format, all giving `Annotated` records: pictures and their sentences.

Readers do not touch the pictures: a missing one is the extraction's business, which names it.
"""

import io
import json
import logging
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from pycocotools.coco import COCO

from captioning.errors import InputError

log = logging.getLogger(__name__)

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
    for entry in content["annotations"]:
        if not (isinstance(entry, dict) and isinstance(entry.get("caption"), str) and "image_id" in entry):
            raise InputError(f"{annotations}: an annotation is no caption of an image: {str(entry)[:80]}")
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
        except (TypeError, AttributeError) as error:
            raise InputError(
                f"{annotations}: image {position} is not as in a Karpathy split file ({error!r})"
            ) from error
        records.append(Annotated(image_id, path, split, texts, tuple(map(str, image.get("sentids", ())))))
    return records


def read_flickr(
    tokens: str | Path,
    images: str | Path,
    splits: dict[str, str | Path],
) -> list[Annotated]:
    """Read the text form of Flickr8k and Flickr30k.

    Lines that name no picture are left out and told (Flickr8k has five: `2258277193_586949ec62.jpg.1`).

    Args:
        tokens: lines of `name.jpg#number<tab>sentence`.
        images: the folder of the pictures.
        splits: the list of image names of each split; images in no list are left out.
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
    if surplus:
        lines = sum(surplus.values())
        log.warning("%s: left out %d lines that name no picture (%s)", tokens, lines, ", ".join(surplus))
    records = []
    for split, file in splits.items():
        for name in (line.strip() for line in _lines(file)):
            if name not in captions:
                raise InputError(
                    f"{file} lists {name} but {tokens} has no caption of it; the two files don't match"
                )
            records.append(Annotated(name, Path(images) / name, split, tuple(captions[name])))
    return records


def _lines(file: str | Path) -> list[str]:
    return [line for line in read_text(file).split("\n") if line.strip()]


def _json(file: str | Path) -> Any:
    try:
        return json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{file} is not JSON (line {error.lineno}): {error.msg}; is the download complete?"
        ) from error


def read_text(file: str | Path) -> str:
    """Read a UTF-8 file.

    Raises:
        InputError: there is none, or it is something else.
    """
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(
            f"there is no annotation file {file}; set CAPTIONING_DATA to the folder of the data sets or the "
            "data.reader.* options to where yours lies"
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text: {error}") from error
