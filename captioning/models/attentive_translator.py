"""Multimodal Attentive Translator (Liu et al., IJCAI 2017): the image as a source sentence of objects.

    h_k, c_k = LSTM_en(W x_k, h_{k-1}, c_{k-1})     k over the regions in their order, the global feature last
    e_k = v . tanh(W_1 h_k + W_2 d_{t-1}),  C_t = sum_k softmax(e)_k h_k
    d_t = LSTM_de([E y_{t-1}; C_t], d_{t-1}),  d_0 = the encoder's last state
    p(y_t) = softmax(W [d_t; C_t])

The global feature is the mean region; `global_feature=False` leaves it out. In the attention returned, its
weight is spread evenly over the regions. Whether the context enters the decoder's LSTM, its output or both
could not be settled from what was available of the paper; `context_to` offers all three. The order of the
regions is that of the feature file: detectors store the most confident first or as `features.extractor.order`
says, grids store cells row by row. The encoder reads in one direction, or in both with `bidirectional`.

Ablations: `context_to=nothing` is the translator without attention, which sees only the encoder's last state
(`attention_dim` is then not used); `shuffled` reads the regions of every image in an order drawn anew, which
then says nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.models.attention import AdditiveAttention, Regions
from captioning.models.dropout import Dropout
from captioning.models.encoder import Encoder, masked_mean
from captioning.models.recurrent import Advance, LSTMState, RecurrentModel, lstm_update


class TranslatorMemory(NamedTuple):
    """States to attend to (the global feature's last), the decoder's first state, mask (B, R) of regions."""

    source: Regions
    first: LSTMState
    mask: Tensor


class RegionSequence(nn.Module):
    """An LSTM over the regions, one after the other.

    Args:
        feature_dim: D of a region.
        embedding_dim: size of a projected region.
        hidden_dim: H of the states.
        dropout: probability, on projected regions.
        global_feature: whether the mean region follows the last one.
        bidirectional: whether a second LSTM reads from the end; each then has H/2.

    Raises:
        InputError: an odd H for two directions.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        embedding_dim: int,
        hidden_dim: int,
        dropout: float,
        global_feature: bool,
        bidirectional: bool,
    ) -> None:
        super().__init__()
        num_directions = 2 if bidirectional else 1
        if hidden_dim % num_directions:
            raise InputError(f"model.bidirectional needs an even model.hidden_dim, found {hidden_dim}")
        self.global_feature = global_feature
        self.project = nn.Linear(feature_dim, embedding_dim)
        self.lstm = nn.LSTM(
            embedding_dim, hidden_dim // num_directions, batch_first=True, bidirectional=bidirectional
        )
        self.dropout = Dropout(dropout)

    def forward(self, regions: Tensor, mask: Tensor | None) -> tuple[Tensor, LSTMState]:
        """Read regions (B, R, D) with mask (B, R), or None if all are real.

        Returns:
            The states (B, R, H), or (B, R+1, H) with the global feature's at the end; and the last state.
        """
        source = regions
        if self.global_feature:
            source = torch.cat([regions, masked_mean(regions, mask)[:, None]], 1)  # (B, R+1, D)
        source = self.dropout(self.project(source))  # (B, R+1, E)
        if (
            mask is None or mask.all()
        ):  # nothing to pack, as for a grid: the faster path, which also runs in bfloat16
            states, (hidden, cell) = self.lstm(source)
            return states, _join_directions(hidden, cell)
        return self._read_packed(source.float(), mask)

    def _read_packed(self, source: Tensor, mask: Tensor) -> tuple[Tensor, LSTMState]:
        """Read projected regions (B, R or R+1, E) of different counts."""
        counts, extra = mask.sum(1), int(self.global_feature)
        rows = torch.arange(len(source), device=source.device)
        position = torch.arange(source.shape[1], device=source.device).expand(len(source), -1)
        order = position
        if extra:
            # Padding stands between the last real region and the mean: move the mean to where padding begins.
            order = torch.where(position == counts[:, None], source.shape[1] - 1, position)
        packed = nn.utils.rnn.pack_padded_sequence(
            source[rows[:, None], order], (counts + extra).cpu(), batch_first=True, enforce_sorted=False
        )
        with torch.autocast(source.device.type, enabled=False):
            states, (hidden, cell) = self.lstm(packed)
        states, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True, total_length=source.shape[1])
        if extra:  # and its state back to the end, where the callers expect it
            states = torch.cat([states[:, :-1] * mask[..., None], states[rows, counts][:, None]], 1)
        return states, _join_directions(hidden, cell)


class AttentiveTranslator(RecurrentModel):
    """Sequence encoder over regions + attention decoder; memory: encoder states; state: (h, c).

    Args:
        encoder: see `Encoder`; the paper has none before its sequence encoder.
        vocabulary_size: V, the four special ids included.
        embedding_dim: size of a word vector and of a projected region.
        hidden_dim: H of both LSTMs.
        attention_dim: size of the attention's hidden layer.
        context_to: `lstm`, `output`, `both` or `nothing`.
        dropout: probability, on projected regions, word vectors and before the head.
        global_feature: whether the source ends with the mean region.
        bidirectional: whether it is also read from the end, with H/2 for each direction.
        shuffled: whether the regions are read in a random order; in evaluation it is always the same one.

    Raises:
        InputError: an unknown `context_to`; see also `RegionSequence`.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        vocabulary_size: int,
        embedding_dim: int,
        hidden_dim: int,
        attention_dim: int,
        context_to: str,
        dropout: float,
        global_feature: bool = True,
        bidirectional: bool = False,
        shuffled: bool = False,
    ) -> None:
        super().__init__()
        if context_to not in ("lstm", "output", "both", "nothing"):
            raise InputError(f"model.context_to is {context_to!r}; it must be lstm, output, both or nothing")
        self.encoder = encoder
        self.vocabulary_size, self.context_to, self.shuffled = vocabulary_size, context_to, shuffled
        self.attends_to_regions = context_to != "nothing"
        self.sequence = RegionSequence(
            feature_dim=encoder.output_dim,
            embedding_dim=embedding_dim,
            hidden_dim=hidden_dim,
            dropout=dropout,
            global_feature=global_feature,
            bidirectional=bidirectional,
        )
        self.attention = (
            AdditiveAttention(value_dim=hidden_dim, query_dim=hidden_dim, attention_dim=attention_dim)
            if self.attends_to_regions
            else None
        )
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.word_gates = nn.Linear(embedding_dim, 4 * hidden_dim)
        self.state_gates = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.context_gates = (
            nn.Linear(hidden_dim, 4 * hidden_dim, bias=False) if context_to in ("lstm", "both") else None
        )
        self.output = nn.Linear(hidden_dim * (2 if context_to in ("output", "both") else 1), vocabulary_size)
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> TranslatorMemory:
        """Read the regions as a sentence and compute the attention keys of its states."""
        values = self.encoder(features)  # (B, R, D)
        states, last = self._read(values, mask)  # (B, R or R+1, H)
        if mask is None:
            mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        source_mask = mask
        if self.sequence.global_feature:
            source_mask = torch.cat([mask, mask[:, :1]], 1)  # every image has at least one region
        if self.attention is None:
            return TranslatorMemory(Regions(states, states, source_mask), last, mask)  # regions are not read
        return TranslatorMemory(self.attention.prepare(states, source_mask), last, mask)

    def _read(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, LSTMState]:
        """Run the sequence encoder over values (B, R, D), `shuffled` or not; states come in their order."""
        if not self.shuffled:
            return self.sequence(values, mask)
        shape = values.shape[:2]
        if self.training:
            keys = torch.rand(shape, device=values.device)  # (B, R)
        else:  # multiples of the golden ratio: a fixed order without a pattern of rows
            positions = torch.arange(shape[1], device=values.device)
            keys = (positions * 0.618034).remainder(1).expand(shape)  # (B, R)
        if mask is not None:
            keys = keys + (~mask).float()  # padding stays at the end
        order = keys.argsort(1)  # (B, R)
        rows = torch.arange(len(values), device=values.device)[:, None]
        states, last = self.sequence(values[rows, order], mask)
        regions = states[rows, order.argsort(1)]  # (B, R, H), each where its region is
        return torch.cat([regions, states[:, shape[1] :]], 1), last

    def start(self, memory: TranslatorMemory) -> LSTMState:
        """Return the sequence encoder's last state."""
        return memory.first

    def embed(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Compute the words' part of the decoder's gates: (…, 4H)."""
        return (self.word_gates(self.dropout(self.embedding(tokens))),)

    def advance(self, embedded: tuple[Tensor, ...], state: LSTMState, memory: TranslatorMemory) -> Advance:
        """Attend to the source with the old state, then update the decoder."""
        gates = embedded[0] + self.state_gates(state.hidden)  # (B, 4H)
        if self.attention is None:
            state = lstm_update(gates, state.cell)
            return Advance((state.hidden,), None, state)
        context, weights = self.attention(state.hidden, memory.source)  # (B, H), (B, R or R+1)
        if self.context_gates is not None:
            gates = gates + self.context_gates(context)
        state = lstm_update(gates, state.cell)
        if self.sequence.global_feature:
            shares = memory.mask / memory.mask.sum(1, keepdim=True)  # (B, R)
            weights = weights[:, :-1] + weights[:, -1:] * shares  # (B, R)
        return Advance((state.hidden, context), weights, state)

    def finish(self, outputs: tuple[Tensor, ...], embedded: tuple[Tensor, ...]) -> Tensor:
        """Concatenate state and context if the context goes to the output: (…, H) or (…, 2H)."""
        if self.context_to in ("lstm", "nothing"):
            return outputs[0]
        hidden, context = outputs
        return torch.cat([hidden, context.to(hidden.dtype)], -1)

    def head(self, hidden: Tensor) -> Tensor:
        """Compute logits: (…, H or 2H) -> (…, V)."""
        return self.output(self.dropout(hidden))


def _join_directions(hidden: Tensor, cell: Tensor) -> LSTMState:
    """Concatenate the last states of the directions: (directions, B, ·) -> (B, H)."""
    return LSTMState(*(torch.cat(part.float().unbind(), -1) for part in (hidden, cell)))
