"""What all recurrent families share: the loop over words, and the cells' arithmetic.

A recurrent family splits a step in three, so that teacher forcing does each part where it is cheapest:

    read(words)             what a word contributes by itself: for all words at once, before the loop
    advance(read, state)    what feeds back: word by word; captions leave the batch as they end
    finish(outputs, read)   what does not feed back, up to the head's input: for all words at once, after the
    loop
"""

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.models.base import CaptionModel, Output, Step, Tree, longest_first, pick


class Advance(NamedTuple):
    """One word later: outputs for `finish` (B, ·), attention (B, R) or None, the new state, extras (B,)."""

    outputs: tuple[Tensor, ...]
    attention: Tensor | None
    state: Tree
    extras: dict[str, Tensor] = {}  # noqa: RUF012 - never mutated


class RecurrentModel(CaptionModel):
    """A caption model whose state is carried from word to word."""

    @abstractmethod
    def read(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Compute what words (…) contribute by themselves: tensors (…, ·)."""

    @abstractmethod
    def advance(self, read: tuple[Tensor, ...], state: Tree, memory: Tree) -> Advance:
        """Move on by one word, given what `read` made of it."""

    def finish(self, outputs: tuple[Tensor, ...], read: tuple[Tensor, ...]) -> Tensor:
        """Turn outputs (…, ·) into hidden vectors (…, H); by default they are the only output."""
        return outputs[0]

    def step(self, tokens: Tensor, state: Tree, memory: Tree) -> Step:
        """Take one word (B,)."""
        read = self.read(tokens)
        moved = self.advance(read, state, memory)
        return Step(self.finish(moved.outputs, read), moved.attention, moved.state, moved.extras)

    def unroll(self, memory: Tree, tokens: Tensor) -> Output:
        """Take all words (B, T); equal to `step` by `step`, in less time."""
        rows = longest_first(tokens)
        read = self.read(tokens[rows.order])
        seen = pick(memory, rows.order)  # the memory of the captions that still run
        state, moves, size = self.start(seen), [], len(tokens)
        words = zip(*(part.unbind(1) for part in read), strict=True)
        for running, word in zip(rows.running, words, strict=False):
            if running < size:  # one slice a word would cost a tensor of zeros a word in the backward pass
                size, own = running, slice(running)
                seen, state = pick(seen, own), pick(state, own)
            moves.append(self.advance(pick(word, slice(size)), state, seen))
            state = moves[-1].state
        length = len(moves)
        outputs = tuple(rows.join([m.outputs[i] for m in moves]) for i in range(len(moves[0].outputs)))
        hidden = self.finish(outputs, pick(read, (slice(None), slice(length))))  # (B, T, H)
        hidden = hidden * (torch.arange(length, device=tokens.device) < rows.lengths[:, None])[..., None]
        maps = [m.attention for m in moves if m.attention is not None]
        names = moves[0].extras
        return Output(
            rows.restore(hidden, tokens.shape[1]),
            rows.restore(rows.join(maps), tokens.shape[1]) if maps else None,
            memory,
            {
                name: rows.restore(rows.join([m.extras[name] for m in moves]), tokens.shape[1])
                for name in names
            },
        )


class LSTMState(NamedTuple):
    """Hidden vector and cell, (B, H) each, float32."""

    hidden: Tensor
    cell: Tensor


def gru_update(from_input: Tensor, from_state: Tensor, state: Tensor) -> Tensor:
    """Apply the gates (Cho et al. 2014, cuDNN's form) to the projections (B, 3H) and the state (B, H)."""
    reset_in, update_in, new_in = from_input.float().chunk(3, dim=-1)
    reset_state, update_state, new_state = from_state.float().chunk(3, dim=-1)
    reset = torch.sigmoid(reset_in + reset_state)
    update = torch.sigmoid(update_in + update_state)
    new = torch.tanh(new_in + reset * new_state)
    return new + update * (state - new)


def lstm_update(gates: Tensor, cell: Tensor) -> LSTMState:
    """Apply the LSTM's gates (B, 4H), in the order input, forget, new, output, to the cell (B, H)."""
    into, forget, new, out = gates.float().chunk(4, dim=-1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(new)
    return LSTMState(torch.sigmoid(out) * torch.tanh(cell), cell)


def zero_state(like: Tensor, hidden_dim: int) -> LSTMState:
    """Begin an LSTM with zeros for each row of `like`."""
    zeros = like.new_zeros(len(like), hidden_dim, dtype=torch.float32)
    return LSTMState(zeros, zeros)


def set_forget_bias(gates: nn.Linear, value: float) -> None:
    """Set the bias of the forget gate in a layer that gives LSTM gates (4H)."""
    with torch.no_grad():
        gates.bias.chunk(4)[1].fill_(value)


def orthogonal_gates(gates: nn.Linear, number: int) -> None:
    """Make the square part of each gate orthogonal in a layer that gives `number` gates of a state."""
    for gate in gates.weight.detach().chunk(number):
        nn.init.orthogonal_(gate)
