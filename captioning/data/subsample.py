"""The seed post's sample: a number of captions drawn at random from all, and a share of them held out.

By default whole images are held out, so that no photograph is on both sides; `by="caption"` splits the
captions as the post did, which puts a fifth of the validation captions on photographs seen in training (flaw
S4).
"""

import json
import os
import random
from collections.abc import Callable, Iterable
from pathlib import Path

from captioning.data.annotations import Annotated
from captioning.errors import InputError


def sample_captions(
    reader: Callable[[], list[Annotated]],
    *,
    number: int,
    val_share: float,
    by: str,
    seed: int,
    ids_file: str | Path | None = None,
) -> list[Annotated]:
    """Draw captions and split them.

    Args:
        reader: gives the records to draw from; their own splits are forgotten.
        number: of captions.
        val_share: share of images (or captions) held out, 0 to 1.
        by: `image` or `caption`, the unit of the split.
        seed: of the draw and of the split.
        ids_file: where the drawn caption ids go, as JSON lists by split.

    Raises:
        InputError: fewer captions than `number`, or another unit.
    """
    if by not in ("image", "caption"):
        raise InputError(f"data.reader.by is {by!r}; it is image or caption")
    if not 0 <= val_share < 1:
        raise InputError(f"data.reader.val_share is {val_share}; needed is a share from 0 to below 1")
    records = reader()
    captions = [(record, position) for record in records for position in range(len(record.captions))]
    if number > len(captions):
        raise InputError(
            f"{number} captions wanted but the annotations have {len(captions)}; lower data.reader.number"
        )
    generator = random.Random(seed)
    drawn = generator.sample(captions, number)
    units = sorted({record.image_id for record, _ in drawn}) if by == "image" else list(range(number))
    held_out = set(generator.sample(units, round(len(units) * val_share)))
    splits = [
        "val" if (record.image_id if by == "image" else index) in held_out else "train"
        for index, (record, _) in enumerate(drawn)
    ]
    result = _gather(zip(splits, drawn, strict=True))
    if ids_file is not None:
        _write_ids(Path(ids_file), result)
    return result


def _gather(drawn: Iterable[tuple[str, tuple[Annotated, int]]]) -> list[Annotated]:
    """Put the drawn captions of one image and split back together."""
    gathered: dict[tuple[str, str], Annotated] = {}
    for split, (record, position) in drawn:
        empty = record._replace(split=split, captions=(), caption_ids=())
        so_far = gathered.get((record.image_id, split), empty)
        gathered[record.image_id, split] = so_far._replace(
            captions=(*so_far.captions, record.captions[position]),
            caption_ids=(*so_far.caption_ids, *record.caption_ids[position : position + 1]),
        )
    return list(gathered.values())


def _write_ids(path: Path, records: list[Annotated]) -> None:
    ids = {
        split: [
            caption_id for record in records if record.split == split for caption_id in record.caption_ids
        ]
        for split in ("train", "val")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.new")
    fresh.write_text(json.dumps(ids))
    os.replace(fresh, path)
