"""Readers of published annotation files, one per format, all returning `Annotated` records.

Readers do not open the pictures: a missing one is reported by the extraction. Every record is checked, by
`Records`.
"""

from collections.abc import Mapping
from pathlib import Path

from captioning.data.records import (
    ID,
    LIST,
    NAME,
    SPLIT,
    TEXT,
    Annotated,
    Records,
    one_picture_per_id,
    read_lists,
)
from captioning.data.texts import read_text
from captioning.errors import InputError
from captioning.files import IMAGE_SUFFIXES
from captioning.vocabulary import printable


def read_coco(annotations: str | Path, images: str | Path, split: str) -> list[Annotated]:
    """Read a COCO captions file of the 2014 or 2017 layout.

    Args:
        annotations: for example `annotations/captions_train2014.json`; keys beyond images and annotations are
            ignored.
        images: the folder of the pictures.
        split: the split that all of its images belong to.

    Raises:
        InputError: a record that is not as in a COCO captions file, or an id of two pictures.
    """
    records = Records(annotations, "a COCO captions file (captions_*.json, not instances_*.json)")
    content, folder = read_lists(annotations, records, "images", "annotations"), Path(images)
    fields = {"id": ID, "file_name": NAME}
    for number, image in enumerate(content["images"]):
        image_id, name = records.check(("images[%d]", number), image, fields)
        if not records.add(image_id, folder / name, split):
            records.note("images listed twice", image_id)
    caption_ids = set()
    fields = {"id": ID, "image_id": ID, "caption": TEXT}
    for number, caption in enumerate(content["annotations"]):
        place = "annotations[%d]", number
        caption_id, image_id, text = records.check(place, caption, fields)
        records.add_caption(place, image_id, split, text, caption_id)
        if caption_id in caption_ids:
            records.note("captions with the id of another", caption_id)
        caption_ids.add(caption_id)
    # Some tools write an id as 7 in one list and as "7" in the other; both mean the same picture.
    ids = [image["id"] for image in content["images"]]
    ids += [caption["image_id"] for caption in content["annotations"]]
    texts = [image_id for image_id in ids if isinstance(image_id, str)]
    if len(texts) < len(ids):
        for image_id in texts:
            records.note("image ids written as text, the others as numbers", image_id)
    return records.finish()


def read_coco_splits(
    root: str | Path, annotations: Mapping[str, str], images: Mapping[str, str]
) -> list[Annotated]:
    """Read one COCO captions file per split.

    Args:
        root: folder of the data set.
        annotations: the file of each split, relative to the root.
        images: the picture folder of each split, relative to the root.

    Raises:
        InputError: see `read_coco`; or an id means a picture in one file and another picture in another.
    """
    records: list[Annotated] = []
    for split, file in annotations.items():
        if split not in images:
            raise InputError(f"data.reader.images has no folder for the split {split!r}, annotations has")
        records += read_coco(Path(root) / file, Path(root) / images[split], split)
    return one_picture_per_id(records, root)


def read_karpathy(annotations: str | Path, images: str | Path) -> list[Annotated]:
    """Read Karpathy's split file (`dataset_coco.json`, `dataset_flickr8k.json`); `restval` joins train.

    Raises:
        InputError: a record that is not as in such a file, or an id of two pictures.
    """
    records = Records(annotations, "a Karpathy split file")
    fields = {"filename": NAME, "split": SPLIT, "sentences": LIST}
    for number, image in enumerate(read_lists(annotations, records, "images")["images"]):
        place = "images[%d]", number
        name, split, sentences, folder, coco_id, ids = records.check(
            place, image, fields, {"filepath": TEXT, "cocoid": ID, "sentids": LIST}
        )
        if ids and len(ids) != len(sentences):
            raise records.error(place, f"{len(ids)} sentids", f"as many as sentences, {len(sentences)}")
        image_id = coco_id or name
        if not records.add(image_id, Path(images) / (folder or "") / name, split):
            records.note("images listed twice", image_id)
        for position, sentence in enumerate(sentences):
            place = f"images[{number}].sentences[%d]", position
            (text,) = records.check(place, sentence, {"raw": TEXT})
            caption_id = {"sentid": ids[position]} if ids else {}
            records.add_caption(
                place, image_id, split, text, *records.check(place, caption_id, {}, {"sentid": ID})
            )
    return records.finish()


def read_flickr(
    tokens: str | Path,
    images: str | Path,
    splits: Mapping[str, str | Path],
    optional_splits: Mapping[str, str | Path] | None = None,
) -> list[Annotated]:
    """Read the text form of Flickr8k and Flickr30k.

    Lines that name no picture are left out and counted (Flickr8k has five: `2258277193_586949ec62.jpg.1`).

    Args:
        tokens: lines of `name.jpg#number<tab>sentence`.
        images: the folder of the pictures.
        splits: the list of image names of each split; images in no list are left out.
        optional_splits: further lists, used where their files are there.

    Raises:
        InputError: a line of another form, or a list without any picture that has a sentence.
    """
    records = Records(tokens, "a Flickr token file")
    captions: dict[str, list[tuple[int, str]]] = {}
    for number, line in _lines(tokens):
        name, tab, sentence = line.partition("\t")
        name, hash_sign, _ = name.partition("#")
        if not tab or not hash_sign:
            raise records.error(("line %d", number), repr(line[:60]), "'name.jpg#0<tab>sentence'")
        fields = {"image": ID, "sentence": TEXT}
        records.check(("line %d", number), {"image": name, "sentence": sentence}, fields)
        if name.lower().endswith(IMAGE_SUFFIXES):
            captions.setdefault(name, []).append((number, sentence))
        else:
            records.note("lines left out that name no picture", name)
    present = {split: file for split, file in (optional_splits or {}).items() if Path(file).is_file()}
    for split, file in {**splits, **present}.items():
        names = [line.strip() for _, line in _lines(file)]
        if not captions.keys() & set(names):
            raise InputError(
                f"{printable(file)} lists no picture that {records.source} has a caption of; the two files "
                "don't match"
            )
        for name in names:
            if not records.add(name, Path(images) / name, split):
                records.note(f"images listed twice in {printable(file)}", name)
                continue
            if name not in captions:
                records.note(f"images of {printable(file)} have no caption here", name)
            for number, sentence in captions.get(name, []):
                records.add_caption(("line %d", number), name, split, sentence)
    return records.finish()


def _lines(file: str | Path) -> list[tuple[int, str]]:
    """Return the lines of a text file that are not blank, with their numbers."""
    # Not `splitlines`, which also splits at characters that may stand inside a caption.
    return [(n, line) for n, line in enumerate(read_text(file).split("\n"), start=1) if line.strip()]
