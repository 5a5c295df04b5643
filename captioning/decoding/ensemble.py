"""Several models as one, of any families: at every word the mean of their probabilities."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.models.base import CaptionModel, Step, Tree


class Ensemble(CaptionModel):
    """Looks like one model to every decoder; memory and state are the members' own, side by side.

    Args:
        models: in evaluation mode, of the same vocabulary.

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
        self._widths: list[int] = []

    @property
    def members(self) -> list[CaptionModel]:
        """The models."""
        return [model for model in self.models if isinstance(model, CaptionModel)]

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tree:
        """Let every member read the image."""
        return tuple(model.encode(features, mask) for model in self.members)

    def start(self, memory: Tree) -> Tree:
        """Start every member."""
        return tuple(model.start(own) for model, own in zip(self.members, memory, strict=True))

    def step(self, tokens: Tensor, state: Tree, memory: Tree) -> Step:
        """Step every member; the attention is the mean of those that attend to regions."""
        steps = [m.step(tokens, s, own) for m, s, own in zip(self.members, state, memory, strict=True)]
        self._widths = [step.hidden.shape[-1] for step in steps]
        maps = [step.attention for step in steps if step.attention is not None]
        attention = torch.stack(maps).mean(0) if maps else None
        return Step(torch.cat([step.hidden for step in steps], -1), attention, tuple(s.state for s in steps))

    def head(self, hidden: Tensor) -> Tensor:
        """Give the logarithm of the members' mean probability as logits."""
        parts = hidden.split(self._widths, -1)
        scores = [m.head(part).float().log_softmax(-1) for m, part in zip(self.members, parts, strict=True)]
        return torch.stack(scores).logsumexp(0) - torch.tensor(float(len(scores))).log()
