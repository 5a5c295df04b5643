"""A model's captions of a whole split.

Nothing is scored here, and the batches need not hold any reference caption.
"""

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from captioning.data.dataset import Batch
from captioning.decoding.decoded import Decoded, alternatives
from captioning.evaluation.results import results_json
from captioning.files import write_text
from captioning.models.base import CaptionModel
from captioning.vocabulary import END, Vocabulary

log = logging.getLogger(__name__)


class SplitCaptions(NamedTuple):
    """Captions of the images of a split, by image id.

    alternatives: further hypotheses or samples of each image, best first; empty lists for greedy decoding.
    milliseconds_per_image: from features in memory to text.
    """

    captions: dict[str, str]
    alternatives: dict[str, list[str]]
    milliseconds_per_image: float


@torch.no_grad()
def caption_split(
    model: CaptionModel,
    vocabulary: Vocabulary,
    batches: Iterable[Batch],
    decoding: Callable[..., Decoded],
    *,
    autocast: bool = False,
) -> SplitCaptions:
    """Caption every image of the batches, on the GPU where there is one.

    Args:
        model: in evaluation mode.
        vocabulary: the model's words.
        batches: each image of the split once.
        decoding: called with (model, features, mask).
        autocast: whether to decode in bfloat16.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    captions: dict[str, str] = {}
    further: dict[str, list[str]] = {}
    seconds, num_cut = 0.0, 0
    for batch in batches:
        started = time.perf_counter()
        mask = None if batch.mask is None else batch.mask.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            decoded = decoding(model, batch.features.to(device), mask)
        # The transfer of the tokens waits for the GPU, so the clock stops after it.
        texts = [vocabulary.decode(row) for row in decoded.tokens.tolist()]
        seconds += time.perf_counter() - started
        num_cut += int((~(decoded.tokens == END).any(1)).sum())
        captions.update(zip(batch.image_ids, texts, strict=True))
        for row, image_id in enumerate(batch.image_ids):
            further[image_id] = [text for text, _ in alternatives(decoded, vocabulary, row)]
    if num_cut:
        log.warning("%d of %d captions did not end within max_words and were cut", num_cut, len(captions))
    if empty := [image_id for image_id, text in captions.items() if not text.strip()]:
        log.warning("%d captions are empty, the first is that of image %s", len(empty), empty[0])
    milliseconds = 1000 * seconds / len(captions)
    log.info("%.2f ms an image to decode", milliseconds)
    return SplitCaptions(captions, further, milliseconds)


def write_captions(folder: str | Path, found: SplitCaptions) -> None:
    """Write `captions.json`, and `alternatives.json` where there are any."""
    write_text(Path(folder) / "captions.json", results_json(found.captions))
    path = Path(folder) / "alternatives.json"
    path.unlink(missing_ok=True)  # of an earlier run into the same folder
    if any(found.alternatives.values()):
        write_text(path, results_json(found.alternatives))
