"""A checkpoint and a photograph in, a caption out.

predictor = Predictor.load("runs/flickr8k/.../checkpoints/best.ckpt")
caption = predictor(read_image("dog.jpg"))
caption.text, caption.words, caption.attention
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from captioning import checkpoint
from captioning.decoding import Decoded, Ensemble
from captioning.errors import InputError
from captioning.features import Backbone, RegionDetector, check_provenance
from captioning.features.extraction import Seen
from captioning.models.base import CaptionModel
from captioning.models.hard_attention import see_at_test
from captioning.vocabulary import Vocabulary


class Caption(NamedTuple):
    """One caption.

    text, words: the T words as one string and as a list.
    others: further hypotheses or samples of this picture, best first, with their log-probabilities.
    attention: (T, R) or None.
    log_prob: of the whole caption, in nats.
    boxes: (R, 4) of detector regions as fractions of the picture, or None for a grid.
    image_size: height and width in pixels of what the backbone saw.
    """

    text: str
    words: list[str]
    attention: np.ndarray | None
    log_prob: float
    boxes: np.ndarray | None
    image_size: tuple[int, int]
    others: tuple[tuple[str, float], ...] = ()


def load_members(
    path: str | Path | Sequence[str | Path], *, hard_context: str | None = None
) -> checkpoint.Loaded:
    """Load one checkpoint, or several of any families as an ensemble with the first one's description.

    Args:
        path: checkpoint file or run folder (the best epoch is taken), or a list of them.
        hard_context: what hard attention sees, if not what it was trained to; see `see_at_test`.

    Raises:
        InputError: no such checkpoint, members of different words or features, or no hard attention.
    """
    paths = [path] if isinstance(path, (str, Path)) else list(path)
    members = [checkpoint.load(checkpoint.locate(one, ("best.ckpt", "last.ckpt"))) for one in paths]
    first = members[0]
    for member, name in zip(members, paths, strict=True):
        if member.vocabulary.words != first.vocabulary.words:
            raise InputError(f"{name} has other words than {paths[0]}; an ensemble needs one vocabulary")
        check_provenance(name, member.description["provenance"], first.description["provenance"])
    if hard_context:
        for member in members:
            see_at_test(member.model, hard_context)
    if len(members) == 1:
        return first
    return first._replace(model=Ensemble([member.model for member in members]).eval())


class Predictor:
    """Captions photographs with a trained model.

    Args:
        model: in evaluation mode.
        vocabulary: its words.
        backbone: makes the features that the model was trained on.
        decoding: called with (model, features, mask).
    """

    def __init__(
        self,
        *,
        model: CaptionModel,
        vocabulary: Vocabulary,
        backbone: Backbone | RegionDetector,
        decoding: Callable[..., Decoded],
    ) -> None:
        self.model, self.vocabulary, self.backbone, self.decoding = model, vocabulary, backbone, decoding
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.to(self.device)
        self.backbone.to(self.device)

    @classmethod
    def load(
        cls,
        path: str | Path | Sequence[str | Path],
        *,
        decoding: Callable[[Vocabulary], Callable[..., Decoded]],
        weights: str | None = None,
        hard_context: str | None = None,
    ) -> "Predictor":
        """Build everything from a checkpoint, or from several as an ensemble.

        Args:
            path: checkpoint file or run folder (the best epoch is taken), or a list of them.
            decoding: given the vocabulary, makes the decoder.
            weights: where the backbone's weights lie now, if they have moved.
            hard_context: see `load_members`.

        Raises:
            InputError: no such checkpoint, members of different words or features, or backbone weights that
                are missing or have changed.
        """
        first = load_members(path, hard_context=hard_context)
        config = dict(first.description["features"]["extractor"])
        if weights:
            config["weights"] = weights
        backbone = checkpoint.build(config)
        known = first.description["provenance"]
        check_provenance(
            "the checkpoint", known, {k: v for k, v in backbone.provenance.items() if k in known}
        )
        words = first.vocabulary
        return cls(model=first.model, vocabulary=words, backbone=backbone, decoding=decoding(words))

    def __call__(self, image: Image.Image) -> Caption:
        """Caption one upright RGB picture."""
        return self.batch([image])[0]

    @torch.no_grad()
    def batch(self, images: Sequence[Image.Image]) -> list[Caption]:
        """Caption several pictures at once."""
        pictures = torch.stack([self.backbone.transform(image) for image in images]).to(self.device)
        seen = Seen.of(self.backbone(pictures))
        decoded = self.decoding(self.model, seen.features.half(), seen.mask)
        return [self._caption(decoded, seen, row) for row in range(len(images))]

    def _caption(self, decoded: Decoded, seen: Seen, row: int) -> Caption:
        words = self.vocabulary.split(decoded.tokens[row].tolist())
        count = seen.features.shape[1] if seen.counts is None else int(seen.counts[row])
        boxes = None if seen.boxes is None else seen.boxes[row, :count].cpu().numpy()
        attention = None
        if decoded.attention is not None:
            attention = decoded.attention[row, : len(words), :count].float().cpu().numpy()
        log_prob = float(decoded.log_probs[row].sum())
        size = self.backbone.image_size
        others = further(decoded, self.vocabulary, row)
        return Caption(" ".join(words), words, attention, log_prob, boxes, size, others)


def further(decoded: Decoded, vocabulary: Vocabulary, row: int) -> tuple[tuple[str, float], ...]:
    """Give one image's hypotheses or samples after the first: texts and log-probabilities."""
    listed = [
        (vocabulary.decode(one.tokens[row].tolist()), float(one.log_probs[row].sum()))
        for one in decoded.others
    ]
    return tuple((text, log_prob) for text, log_prob in listed if log_prob > -math.inf)


def as_json(name: str, caption: Caption) -> dict[str, Any]:
    """Say a caption in plain values, for a JSON line."""
    said: dict[str, Any] = {
        "image": name,
        "caption": caption.text,
        "log_prob": round(caption.log_prob, 4),
    }
    if caption.others:
        said["others"] = [{"caption": text, "log_prob": round(value, 4)} for text, value in caption.others]
    return said
