"""The post's shifted targets (flaw S2), to see what they cost.

Its loop, ported from 0-based Python to 1-based R, begins one column early and ends one early: the model is
first trained to say START after START, and a caption that fills the padded width never gets its END as a
target.
"""

import torch
from torch import Tensor

from captioning.data.dataset import Batch
from captioning.models.base import CaptionModel
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.vocabulary import START


class ShiftedTargets:
    """Cross-entropy of captions with one START too many, cut at the padded width.

    Args:
        max_words: of a caption; the padded width is that and START and END. None cuts nothing.
        cross_entropy: what is computed on them.
    """

    def __init__(self, *, max_words: int | None, cross_entropy: CrossEntropy) -> None:
        self.width = None if max_words is None else max_words + 2
        self.cross_entropy = cross_entropy

    def __call__(self, model: CaptionModel, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss."""
        start = torch.full_like(batch.tokens[:, :1], START)
        shifted = torch.cat([start, batch.tokens], 1)[:, : self.width]
        return self.cross_entropy(model, batch._replace(tokens=shifted))
