"""The interface between caption models and everything that uses them.

A family defines how an image is encoded (`encode`), the state before the first word (`start`), the change
that one word makes (`step`) and the projection of a hidden vector to the vocabulary (`head`). Teacher
forcing, greedy decoding, sampling, beam search, rewards and attention maps are each written once against
these four.

Legend of every file: B images, C captions where they share images, R regions, D feature size, H hidden,
T words, V vocabulary, K beams.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.vocabulary import END, PAD

# Nested tuples of batch-first tensors (or None). Code outside the family may only re-index such a tree with
# `pick`.
Tree = Any


class Step(NamedTuple):
    """The result of one word: hidden (B, H), attention (B, R) or None, the new state, named extras (B,)."""

    hidden: Tensor
    attention: Tensor | None
    state: Tree
    extras: dict[str, Tensor] = {}  # noqa: RUF012 - never mutated


class Output(NamedTuple):
    """The result of all words: hidden (B, T, H), attention (B, T, R) or None, memory, named extras (B, T).

    Hidden vectors, attention and extras are zero at steps that are not real, see `real_steps`.
    """

    hidden: Tensor
    attention: Tensor | None
    memory: Tree
    extras: dict[str, Tensor] = {}  # noqa: RUF012 - never mutated


class CaptionModel(nn.Module, ABC):
    """A caption decoder.

    Attributes:
        vocabulary_size: V.
        output: the module whose last linear layer scores the words.
        samples_attention: whether training samples regions, so that no gradient of the words reaches the
            attention.
        attends_to_regions: whether `Step.attention` is there.
        predicts_topics: whether the memory has `topic_logits` and `attribute_logits`.
    """

    vocabulary_size: int
    output: Any
    samples_attention: bool = False
    attends_to_regions: bool = True
    predicts_topics: bool = False

    @abstractmethod
    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tree:
        """Compute, once per image, everything that each word reads again, attention keys included.

        Args:
            features: (B, R, D) of any float type.
            mask: (B, R) True at real regions; None if all are real.
        """

    @abstractmethod
    def start(self, memory: Tree) -> Tree:
        """Return the state before the first word."""

    @abstractmethod
    def step(self, tokens: Tensor, state: Tree, memory: Tree) -> Step:
        """Process one word (B,) of each caption, starting with START."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Project hidden vectors (…, H) to logits (…, V)."""

    def init_output_bias(self, counts: Tensor) -> None:
        """Initialise the last layer's bias so that the untrained model predicts the words' frequencies.

        The bias becomes log((n + 1) / sum (n + 1)), as in Karpathy's NeuralTalk code (2014): training need
        not learn first which words are frequent.

        Args:
            counts: (V,) how often each word occurs as a target, END included.
        """
        log_frequencies = (counts + 1).log() - (counts + 1).sum().log()
        last = [layer for layer in self.output.modules() if isinstance(layer, nn.Linear)][-1]
        with torch.no_grad():
            last.bias.copy_(log_frequencies)

    def expected_attention(self) -> AbstractContextManager[None]:
        """Return a context in which training uses the expected context vector instead of a sampled region.

        It changes nothing in models that do not sample, and never how many random numbers are drawn.
        """
        return nullcontext()

    def forward(
        self,
        features: Tensor,
        tokens: Tensor,
        mask: Tensor | None = None,
        image_rows: Tensor | None = None,
    ) -> Output:
        """Compute the hidden vectors of given captions (teacher forcing).

        Args:
            features: (B, R, D).
            tokens: (C, T) input words from START on; END is not needed, and steps at END or PAD are left out.
            mask: (B, R) True at real regions.
            image_rows: (C,) the image of each caption, which is encoded once; None for one caption an image.

        Raises:
            InputError: there are not as many captions as images, and no rows say which belong together.
        """
        if image_rows is None and len(features) != len(tokens):
            raise InputError(
                f"features of {len(features)} images came with {len(tokens)} captions; an objective whose "
                "captions share images (data.captions_per_image) calls teacher_force(model, batch, inputs)"
            )
        memory = self.encode(features, mask)
        return self.unroll(memory if image_rows is None else pick(memory, image_rows), tokens)

    def unroll(self, memory: Tree, tokens: Tensor) -> Output:
        """Run `step` over given words (B, T); families override it by something faster, equal in value."""
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

    def unroll_all(self, memory: Tree, tokens: Tensor) -> Output:
        """Do what `unroll` does, by operations that are the same for all words (B, T) of this shape.

        A GPU can then replay a recording of them. Families whose `unroll` leaves out captions that have ended
        override it.
        """
        return self.unroll(memory, tokens)


def real_steps(tokens: Tensor) -> Tensor:
    """Return (B, T) bool: True at input words that have a next word, so not at END and PAD."""
    return (tokens != PAD) & (tokens != END)


def attention_entropy(attention: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the entropy (B, T) of maps (B, T, R), as a share of the greatest over real regions (B, R).

    It is 0 for an image of a single region.
    """
    maps = attention.float()
    # The derivative of x log x is infinite at 0, where padded regions are.
    entropy = -(maps * maps.clamp(min=1e-9).log()).sum(-1)
    regions = maps.new_full((len(maps), 1), maps.shape[-1]) if mask is None else mask.sum(1, keepdim=True)
    return entropy / regions.clamp(min=2).log()


def pick(tree: Tree, index: Any) -> Tree:
    """Index every tensor of a tree with the same index, which starts at the batch dimension."""
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        if isinstance(index, Tensor) and index.dim() == 1 and index.dtype == torch.int64:
            # Its backward pass adds whole rows; that of `tree[index]` puts single numbers.
            return tree.index_select(0, index)
        return tree[index]
    parts = [pick(part, index) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def _stack(steps: list[Any]) -> Tensor:
    return torch.stack(steps, dim=1)
