"""Copies rows of a float16 cache into another of the same features, stored as that one stores them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from captioning.features.cache import FeatureCache, Row, check_provenance
from captioning.features.images import Fingerprint
from captioning.features.pictures import Pictures
from captioning.features.writer import CacheWriter
from captioning.vocabulary import printable

_BLOCK = 64  # rows that are read at once


def copy_features(
    path: str | Path, writer: CacheWriter, provenance: Mapping[str, Any], pictures: Pictures
) -> None:
    """Fill what is to do, as far as the cache at `path` has it, byte for byte as an extraction would.

    Args:
        path: of the cache to copy from.
        writer: of the cache to fill.
        provenance: of the cache to fill.
        pictures: of all requested images.

    Raises:
        InputError: `path` is no whole cache, or holds features of other pictures or made with other options.
    """
    source = FeatureCache(path)
    # Rows that were rounded to int8 once would be rounded again.
    check_provenance(printable(path), source.provenance, {**provenance, "store": "float16"})
    rows = {image_id: row for row in writer.to_do.tolist() if (image_id := writer.image_ids[row]) in source}
    source.check_pictures({image_id: pictures.paths[image_id] for image_id in rows})
    recorded, image_ids = source.recorded(rows), list(rows)
    for start in range(0, len(image_ids), _BLOCK):
        block = image_ids[start : start + _BLOCK]
        contents = zip(block, source.read(block), source.counts(block).tolist(), strict=True)
        for image_id, features, count in contents:
            content = Row(features, count)
            if source.has_boxes:
                content = Row(features, count, source.boxes(image_id), source.scores(image_id))
            made_of = Fingerprint(*recorded[image_id][1:]) if image_id in recorded else None
            writer.write(rows[image_id], content, made_of)
        writer.flush()
