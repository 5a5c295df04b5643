"""Several models of any families as one: at every word the mean of their probabilities.

    log p(w) = log (1/M) sum_m p_m(w)

A word's mean needs every member's own head, so `step` computes it: its hidden vector is the mean's
logarithm (B, V), and `head` hands it on. Memory and state are tuples of the members' own.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.models.base import CaptionModel, Step, Tree


class Ensemble(CaptionModel):
    """Looks like one model to every decoder.

    Args:
        models: in evaluation mode, with the same vocabulary.

    Raises:
        InputError: no model, or vocabularies of different sizes.
    """

    def __init__(self, models: Sequence[CaptionModel]) -> None:
        super().__init__()
        sizes = {model.vocabulary_size for model in models}
        if len(sizes) != 1:
            raise InputError(f"an ensemble needs models of one vocabulary, found sizes {sorted(sizes)}")
        self.models = nn.ModuleList(models)
        self.vocabulary_size = sizes.pop()

    @property
    def members(self) -> list[CaptionModel]:
        """The models, typed."""
        return cast("list[CaptionModel]", list(self.models))

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tree:
        """Encode the images (B, R, D) with every member."""
        return tuple(model.encode(features, mask) for model in self.members)

    def start(self, memory: Tree) -> Tree:
        """Return every member's state before the first word."""
        return tuple(model.start(part) for model, part in zip(self.members, memory, strict=True))

    def step(self, tokens: Tensor, state: Tree, memory: Tree) -> Step:
        """Step every member with the words (B,); the attention is the mean over those that have one."""
        parts = zip(self.members, state, memory, strict=True)
        steps = [model.step(tokens, before, memory_part) for model, before, memory_part in parts]
        maps = [step.attention for step in steps if step.attention is not None]
        attention = torch.stack(maps).mean(0) if maps else None  # (B, R)
        log_probs = [
            model.head(step.hidden).float().log_softmax(-1)
            for model, step in zip(self.members, steps, strict=True)
        ]
        # The mean of probabilities in the log domain, where small ones do not underflow.
        mean = torch.stack(log_probs).logsumexp(0) - torch.tensor(float(len(steps))).log()  # (B, V)
        return Step(mean, attention, tuple(step.state for step in steps))

    def head(self, hidden: Tensor) -> Tensor:
        """Return the mean log-probabilities (…, V) that `step` computed, as logits."""
        return hidden
