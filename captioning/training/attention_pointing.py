"""The pointing score of a batch of captions, where the data know the places of what is named."""

from captioning.data import Batch, CaptionDataModule
from captioning.decoding import Decoded
from captioning.features.grid import cell_boxes
from captioning.metrics.pointing import Pointing, pool_pointing, score_pointing


def point(decoded: Decoded, batch: Batch, data: CaptionDataModule | None) -> Pointing:
    """Count the words whose attention lies on what they name; none where no places or maps are known."""
    if data is None or data.places is None or decoded.attention is None:
        return Pointing(0, 0)
    assert data.vocabulary is not None
    attention, cache, parts = decoded.attention.float().cpu().numpy(), data.cache, []
    cells = cell_boxes(cache.provenance["image_size"], cache.grid) if cache.grid else None
    for row, image_id in enumerate(batch.image_ids):
        words = data.vocabulary.split(decoded.tokens[row].tolist())
        if places := data.places(image_id, words):
            regions = cache.boxes(image_id) if cells is None else cells
            parts.append(score_pointing(attention[row], regions, places))
    return pool_pointing(parts)
