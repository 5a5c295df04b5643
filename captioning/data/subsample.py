"""The sample of the post (Keydana 2018): a number of captions drawn at random from all, a share held out.

By default whole images are held out, so that no photograph is in both splits; `by="caption"` splits the
captions as the post did, which puts a fifth of the validation captions on training photographs (flaw S4).
Nothing is written: training lists the drawn caption ids in its run folder.
"""

import random
from collections.abc import Callable, Iterable

from captioning.data.records import Annotated, num_held_out
from captioning.errors import InputError


def sample_captions(
    reader: Callable[[], list[Annotated]], *, number: int, val_share: float, by: str, seed: int
) -> list[Annotated]:
    """Draw captions and split them.

    Args:
        reader: gives the records to draw from; their own splits are ignored.
        number: captions to draw.
        val_share: share of images (or captions) held out, 0 to 1.
        by: `image` or `caption`, the unit of the split.
        seed: seeds the draw and the split.

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
    # Sorted: the order of a set of texts differs from process to process.
    units = sorted({record.image_id for record, _ in drawn}) if by == "image" else list(range(number))
    held_out = set(generator.sample(units, num_held_out(len(units), val_share)))
    splits = [
        "val" if (record.image_id if by == "image" else index) in held_out else "train"
        for index, (record, _) in enumerate(drawn)
    ]
    return _group_by_image(zip(splits, drawn, strict=True))


def _group_by_image(drawn: Iterable[tuple[str, tuple[Annotated, int]]]) -> list[Annotated]:
    """Put the drawn captions of each image and split back into one record."""
    grouped: dict[tuple[str, str], Annotated] = {}
    for split, (record, position) in drawn:
        empty = record._replace(split=split, captions=(), caption_ids=())
        so_far = grouped.get((record.image_id, split), empty)
        grouped[record.image_id, split] = so_far._replace(
            captions=(*so_far.captions, record.captions[position]),
            # Some formats give captions no ids; then the slice is empty and the record stays without.
            caption_ids=(*so_far.caption_ids, *record.caption_ids[position : position + 1]),
        )
    return list(grouped.values())
