"""What all recurrent families share: the loop over words, the cells' arithmetic, initial states.

A recurrent family splits a step in three, so that teacher forcing runs each part where it is cheapest:

    embed(words)               what depends on the word alone: for all words at once, before the loop
    advance(embedded, state)   what feeds back: word by word; captions leave the batch as they end
    finish(outputs, embedded)  what does not feed back, up to `head`: for all words at once, after the loop
"""

from abc import abstractmethod
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.models.base import CaptionModel, Output, Step, Tree, pick, real_steps


class Advance(NamedTuple):
    """One step: outputs for `finish` (B, ·), attention (B, R) or None, the new state, named extras (B,)."""

    outputs: tuple[Tensor, ...]
    attention: Tensor | None
    state: Tree
    extras: dict[str, Tensor] = {}  # noqa: RUF012 - never mutated


class RecurrentModel(CaptionModel):
    """A caption model whose state is carried from word to word."""

    @abstractmethod
    def embed(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Compute what depends on words (…) alone: tensors (…, ·)."""

    @abstractmethod
    def advance(self, embedded: tuple[Tensor, ...], state: Tree, memory: Tree) -> Advance:
        """Advance by one word, given what `embed` computed for it."""

    def finish(self, outputs: tuple[Tensor, ...], embedded: tuple[Tensor, ...]) -> Tensor:
        """Compute hidden vectors (…, H) from outputs (…, ·); by default they are the first output."""
        return outputs[0]

    def step(self, tokens: Tensor, state: Tree, memory: Tree) -> Step:
        """Process one word (B,) of each caption."""
        embedded = self.embed(tokens)
        moved = self.advance(embedded, state, memory)
        return Step(self.finish(moved.outputs, embedded), moved.attention, moved.state, moved.extras)

    def unroll(self, memory: Tree, tokens: Tensor) -> Output:
        """Process all words (B, T); equal to `step` after `step`, in less time."""
        captions = sort_by_length(tokens)
        found = self._run(captions, tokens[captions.order], pick(memory, captions.order))
        restore = partial(captions.restore, num_steps=tokens.shape[1])
        return Output(
            restore(found.hidden),  # (B, T, H)
            None if found.attention is None else restore(found.attention),  # (B, T, R)
            memory,
            {name: restore(values) for name, values in found.extras.items()},  # (B, T)
        )

    def unroll_all(self, memory: Tree, tokens: Tensor) -> Output:
        """Process all words (B, T) without leaving out captions that have ended, see `CaptionModel`."""
        real = real_steps(tokens)  # (B, T)
        rows = torch.arange(len(tokens), device=tokens.device)
        captions = SortedCaptions(rows, real.sum(1), [len(tokens)] * tokens.shape[1])
        found = self._run(captions, tokens, memory)
        return Output(
            found.hidden,
            None if found.attention is None else found.attention * real[..., None],
            memory,
            {name: values * real for name, values in found.extras.items()},
        )

    def _run(self, captions: "SortedCaptions", tokens: Tensor, memory: Tree) -> Output:
        """Process words (B, T) and memory, both sorted, up to the end of the longest caption."""
        embedded = self.embed(tokens)  # (B, T, ·) each
        active = memory  # of the captions that are still running
        state, moves, size = self.start(active), [], len(tokens)
        words = zip(*(part.unbind(1) for part in embedded), strict=True)
        # `words` may be longer: steps after the end of the longest caption are not run.
        for running, word in zip(captions.running, words, strict=False):
            # Sliced only where captions end: the backward pass of each slice allocates a tensor of zeros.
            if running < size:
                size, rows = running, slice(running)
                active, state = pick(active, rows), pick(state, rows)
            moves.append(self.advance(pick(word, slice(size)), state, active))
            state = moves[-1].state
        length = len(moves)
        outputs = tuple(captions.stack([m.outputs[i] for m in moves]) for i in range(len(moves[0].outputs)))
        hidden = self.finish(outputs, pick(embedded, (slice(None), slice(length))))  # (B, length, H)
        # `finish` need not map the zeros after a caption's end to zeros.
        hidden = hidden * (torch.arange(length, device=tokens.device) < captions.lengths[:, None])[..., None]
        maps = [m.attention for m in moves if m.attention is not None]
        extras = {name: captions.stack([m.extras[name] for m in moves]) for name in moves[0].extras}
        return Output(hidden, captions.stack(maps) if maps else None, memory, extras)


class SortedCaptions(NamedTuple):
    """Captions sorted by length, longest first: those still running at a step are the first rows.

    Where all run to the end, any order will do.

    order: (B,) the batch's row at each sorted position.
    lengths: (B,) number of real steps, in sorted order.
    running: for each step, how many captions are still running.
    """

    order: Tensor
    lengths: Tensor
    running: list[int]

    def stack(self, steps: list[Tensor]) -> Tensor:
        """Stack one tensor (running, …) per step to (B, steps, …), with zeros after a caption's end."""
        return torch.stack([_pad_rows(step, len(self.order)) for step in steps], dim=1)

    def restore(self, stacked: Tensor, num_steps: int) -> Tensor:
        """Bring (B, steps, …) back into the batch's order, and pad it with zeros to `num_steps`."""
        missing = num_steps - stacked.shape[1]
        if missing:
            stacked = functional.pad(stacked, (0, 0) * (stacked.dim() - 2) + (0, missing))
        return stacked[self.order.argsort()]


def sort_by_length(tokens: Tensor) -> SortedCaptions:
    """Sort captions (B, T) by their number of real steps."""
    real = real_steps(tokens)  # (B, T)
    lengths = real.sum(1)  # (B,)
    order = lengths.argsort(descending=True, stable=True)
    return SortedCaptions(order, lengths[order], [count for count in real.sum(0).tolist() if count])


def _pad_rows(values: Tensor, num_rows: int) -> Tensor:
    missing = num_rows - values.shape[0]
    return functional.pad(values, (0, 0) * (values.dim() - 1) + (0, missing)) if missing else values


class LSTMState(NamedTuple):
    """Hidden vector and cell, (B, H) each, float32."""

    hidden: Tensor
    cell: Tensor


class InitialLSTMState(nn.Module):
    """The first state of an LSTM from an image vector m: h_0 = tanh(W_h m + b_h), c_0 = tanh(W_c m + b_c).

    Args:
        input_dim: size of the image vector, such as the mean region.
        hidden_dim: H.
    """

    def __init__(self, *, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(input_dim, hidden_dim)
        self.cell = nn.Linear(input_dim, hidden_dim)

    def forward(self, image: Tensor) -> LSTMState:
        """Compute the state from image vectors (B, input_dim)."""
        return LSTMState(torch.tanh(self.hidden(image)).float(), torch.tanh(self.cell(image)).float())


def zero_state(like: Tensor, hidden_dim: int) -> LSTMState:
    """Return a state of zeros for each row of `like`."""
    zeros = like.new_zeros(len(like), hidden_dim, dtype=torch.float32)  # (B, H)
    return LSTMState(zeros, zeros)


def gru_update(from_input: Tensor, from_state: Tensor, state: Tensor) -> Tensor:
    """Compute the next state (Cho et al. 2014, cuDNN's form) from projections (B, 3H) and state (B, H)."""
    reset_in, update_in, new_in = from_input.float().chunk(3, dim=-1)
    reset_state, update_state, new_state = from_state.float().chunk(3, dim=-1)
    reset = torch.sigmoid(reset_in + reset_state)
    update = torch.sigmoid(update_in + update_state)
    new = torch.tanh(new_in + reset * new_state)
    return new + update * (state - new)


def lstm_update(gates: Tensor, cell: Tensor) -> LSTMState:
    """Compute the next state from gates (B, 4H), ordered input, forget, new, output, and cell (B, H)."""
    into, forget, new, out = gates.float().chunk(4, dim=-1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(new)
    return LSTMState(torch.sigmoid(out) * torch.tanh(cell), cell)


def set_forget_bias(gates: nn.Linear, value: float) -> None:
    """Set the bias of the forget gate in a layer that computes LSTM gates (4H)."""
    with torch.no_grad():
        gates.bias.chunk(4)[1].fill_(value)


def orthogonal_gates(gates: nn.Linear, num_gates: int) -> None:
    """Initialise the square matrix of each gate orthogonally, in a layer from a state to its gates."""
    for gate in gates.weight.detach().chunk(num_gates):
        nn.init.orthogonal_(gate)
