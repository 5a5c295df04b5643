"""The shifted targets of the blog post (flaw S2), to measure what they cost.

The post's loop was ported from 0-based Python to 1-based R; it begins one column early and ends one early.
The model is first trained to predict START after START, and a caption that fills the padded width never has
its END as a target.
"""

import torch

from captioning.data.dataset import Batch
from captioning.models.base import CaptionModel
from captioning.objectives.base import Objective, Terms
from captioning.objectives.cross_entropy import CrossEntropy
from captioning.vocabulary import START


class ShiftedTargets(Objective):
    """Cross-entropy on captions with a second START, cut at the padded width.

    Args:
        max_words: of a caption; the padded width is two more, for START and END. None cuts nothing.
        cross_entropy: what is computed on these captions.
    """

    def __init__(self, *, max_words: int | None, cross_entropy: CrossEntropy) -> None:
        self.width = None if max_words is None else max_words + 2
        self.cross_entropy = cross_entropy

    def __call__(self, model: CaptionModel, batch: Batch) -> Terms:
        start = torch.full_like(batch.tokens[:, :1], START)
        shifted = torch.cat([start, batch.tokens], 1)[:, : self.width]
        return self.cross_entropy(model, batch._replace(tokens=shifted))
