"""The one small interface between models and everything that uses them.

A family says how an image is read once (`encode`), what the state is before the first word (`start`), what
one word changes (`step`) and how a hidden vector becomes scores (`head`). Teacher forcing, greedy decoding,
sampling, beam search, rewards and attention pictures are each written once against these four.

Legend of every file: B images, R regions, D feature size, H hidden, T words, V vocabulary, K beams.
"""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.vocabulary import END, PAD

# Nested tuples of batch-first tensors (or None); outside its family such a tree may only be re-indexed by
# `pick`.
Tree = Any


class Step(NamedTuple):
    """One word later: hidden (B, H) for `head`, attention (B, R) or None, new state, named extras (B,)."""

    hidden: Tensor
    attention: Tensor | None
    state: Tree
    extras: dict[str, Tensor] = {}  # noqa: RUF012 - never mutated


class Output(NamedTuple):
    """All words at once: hidden (B, T, H), attention (B, T, R) or None, the memory, and named extras (B, T).

    Everything is zero at steps that are not real, see `real_steps`.
    """

    hidden: Tensor
    attention: Tensor | None
    memory: Tree
    extras: dict[str, Tensor] = {}  # noqa: RUF012 - never mutated


class CaptionModel(nn.Module, ABC):
    """A decoder of captions; `vocabulary_size` is V, `output` ends in the linear layer that scores words."""

    vocabulary_size: int
    output: Any

    @abstractmethod
    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tree:
        """Read an image once: all that every word looks at again, attention keys included.

        Args:
            features: (B, R, D) in any float type.
            mask: (B, R) True at real regions; None where all are.
        """

    @abstractmethod
    def start(self, memory: Tree) -> Tree:
        """Give the state before the first word."""

    @abstractmethod
    def step(self, tokens: Tensor, state: Tree, memory: Tree) -> Step:
        """Take the words (B,) that came last, starting with START."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Project hidden vectors (…, H) to logits (…, V)."""

    def expect_frequencies(self, counts: Tensor) -> None:
        """Let the untrained model say words as often as captions do, instead of all alike.

        Sets the bias of the last layer to log((n + 1) / sum (n + 1)), so that training need not first learn
        which words are frequent; Karpathy's NeuralTalk code (2014) did so.

        Args:
            counts: (V,) how often each word is to be said, END included.
        """
        frequencies = (counts + 1).log() - (counts + 1).sum().log()
        last = [part for part in self.output.modules() if isinstance(part, nn.Linear)][-1]
        with torch.no_grad():
            last.bias.copy_(frequencies)

    def forward(self, features: Tensor, tokens: Tensor, mask: Tensor | None = None) -> Output:
        """Teacher forcing: the hidden vectors for all given words.

        Args:
            features: (B, R, D).
            tokens: (B, T) input words, from START on; no END is needed, and steps at END or PAD are left out.
            mask: (B, R) True at real regions.
        """
        return self.unroll(self.encode(features, mask), tokens)

    def unroll(self, memory: Tree, tokens: Tensor) -> Output:
        """Run `step` over given words (B, T); families override it with something faster of equal value."""
        state, steps = self.start(memory), []
        for t in range(tokens.shape[1]):
            steps.append(self.step(tokens[:, t], state, memory))
            state = steps[-1].state
        real = real_steps(tokens)  # (B, T)
        return Output(
            _stack([s.hidden for s in steps]) * real[..., None],
            None if steps[0].attention is None else _stack([s.attention for s in steps]) * real[..., None],
            memory,
            {name: _stack([s.extras[name] for s in steps]) * real for name in steps[0].extras},
        )


def real_steps(tokens: Tensor) -> Tensor:
    """Say at which input words (B, T) a next word exists: everywhere but at END and PAD; (B, T) bool."""
    return (tokens != PAD) & (tokens != END)


def pick(tree: Tree, index: Any) -> Tree:
    """Index every tensor of a tree alike: the batch dimension, or as far as the index goes."""
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return tree[index]
    parts = [pick(part, index) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


class Rows(NamedTuple):
    """Captions sorted longest first, so that those still running at a step are the first rows.

    order: (B,) the row of the batch that stands at each sorted place.
    lengths: (B,) real steps of the captions in that order.
    running: for each step, how many captions still run.
    """

    order: Tensor
    lengths: Tensor
    running: list[int]

    def join(self, steps: list[Tensor]) -> Tensor:
        """Join one tensor (running, …) a step into (B, t, …), zero after a caption's end."""
        return torch.stack([_pad_rows(step, len(self.order)) for step in steps], dim=1)

    def restore(self, joined: Tensor, steps: int) -> Tensor:
        """Put (B, t, …) back into the batch's own order and pad it to that many steps."""
        missing = steps - joined.shape[1]
        if missing:
            joined = functional.pad(joined, (0, 0) * (joined.dim() - 2) + (0, missing))
        return joined[self.order.argsort()]


def longest_first(tokens: Tensor) -> Rows:
    """Sort captions (B, T) by their number of real steps."""
    real = real_steps(tokens)
    lengths = real.sum(1)
    order = lengths.argsort(descending=True, stable=True)
    return Rows(order, lengths[order], [count for count in real.sum(0).tolist() if count])


def _pad_rows(values: Tensor, rows: int) -> Tensor:
    missing = rows - values.shape[0]
    return functional.pad(values, (0, 0) * (values.dim() - 1) + (0, missing)) if missing else values


def _stack(steps: list[Any]) -> Tensor:
    return torch.stack(steps, dim=1)
