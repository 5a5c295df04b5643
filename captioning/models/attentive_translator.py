"""Multimodal Attentive Translator (Liu et al., IJCAI 2017): the image as a source sentence of objects.

    h_k, c_k = LSTM_en(W x_k, h_{k-1}, c_{k-1})     k over the regions in their order, the global feature last
    e_k = v . tanh(W_1 h_k + W_2 d_{t-1}),  C_t = sum_k softmax(e)_k h_k
    d_t = LSTM_de([E y_{t-1}; C_t], d_{t-1}),  d_0 = the encoder's last state
    p(y_t) = softmax(W [d_t; C_t])

The global feature is the mean region; `global_feature=False` leaves it out. Its attention weight is shown
spread evenly over the regions it is the mean of. Whether the context enters the decoder's LSTM, its output or
both is not settled by what could be read of the paper; `context_to` offers all three. The order of the
regions is the feature file's: detectors store the most confident first or as `features.extractor.order` says,
grids their cells row by row. The encoder reads in one direction, or with `bidirectional` in both.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.models.attention import AdditiveAttention, Regions
from captioning.models.dropout import Dropout
from captioning.models.encoder import RegionSequence, as_computed
from captioning.models.recurrent import Advance, LSTMState, RecurrentModel, lstm_update


class TranslatorMemory(NamedTuple):
    """Encoder states to attend to (the global one last), the decoder's first state, the regions' mask."""

    source: Regions
    first: LSTMState
    mask: Tensor


class AttentiveTranslator(RecurrentModel):
    """Sequence encoder over regions + attention decoder; memory: encoder states; state: (h, c).

    Args:
        feature_dim: D of the cache.
        vocabulary_size: V, the four special ids included.
        embedding_dim: size of a word vector and of a projected region.
        hidden_dim: H of both LSTMs.
        attention_dim: size of the attention's common space.
        context_to: `lstm`, `output` or `both`.
        global_feature: whether the encoder ends with the mean region.
        bidirectional: whether it also reads from the end, with H/2 for each direction.
        dropout: probability, on projected regions, word vectors and before the head.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        vocabulary_size: int,
        embedding_dim: int,
        hidden_dim: int,
        attention_dim: int,
        context_to: str,
        dropout: float,
        global_feature: bool = True,
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        if context_to not in ("lstm", "output", "both"):
            raise InputError(f"model.context_to is {context_to!r}; it is lstm, output or both")
        self.vocabulary_size, self.context_to = vocabulary_size, context_to
        self.encoder = RegionSequence(
            feature_dim=feature_dim,
            embedding_dim=embedding_dim,
            hidden_dim=hidden_dim,
            dropout=dropout,
            global_feature=global_feature,
            bidirectional=bidirectional,
        )
        self.attention = AdditiveAttention(
            value_dim=hidden_dim, query_dim=hidden_dim, attention_dim=attention_dim
        )
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.word_gates = nn.Linear(embedding_dim, 4 * hidden_dim)
        self.state_gates = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.context_gates = (
            nn.Linear(hidden_dim, 4 * hidden_dim, bias=False) if context_to != "output" else None
        )
        self.output = nn.Linear(hidden_dim * (1 if context_to == "lstm" else 2), vocabulary_size)
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> TranslatorMemory:
        """Read the regions as a sentence."""
        values = as_computed(features, self.output.weight)
        if mask is None:
            mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
        states, last = self.encoder(values, mask)  # (B, R or R+1, H)
        read = mask
        if self.encoder.global_feature:
            read = torch.cat([mask, mask[:, :1]], 1)  # every image has at least one region
        return TranslatorMemory(self.attention.prepare(states, read), last, mask)

    def start(self, memory: TranslatorMemory) -> LSTMState:
        """Begin with the encoder's last state."""
        return memory.first

    def read(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Embed words: their part of the decoder's gates (…, 4H)."""
        return (self.word_gates(self.dropout(self.embedding(tokens))),)

    def advance(self, read: tuple[Tensor, ...], state: LSTMState, memory: TranslatorMemory) -> Advance:
        """Look at the source with the old state, then move the decoder."""
        context, weights = self.attention(state.hidden, memory.source)  # (B, H), (B, R+1)
        gates = read[0] + self.state_gates(state.hidden)
        if self.context_gates is not None:
            gates = gates + self.context_gates(context)
        state = lstm_update(gates, state.cell)
        if self.encoder.global_feature:
            spread = memory.mask / memory.mask.sum(1, keepdim=True)
            weights = weights[:, :-1] + weights[:, -1:] * spread
        return Advance((state.hidden, context), weights, state)

    def finish(self, outputs: tuple[Tensor, ...], read: tuple[Tensor, ...]) -> Tensor:
        """Put the context beside the state where it goes to the output."""
        hidden, context = outputs
        return hidden if self.context_to == "lstm" else torch.cat([hidden, context.to(hidden.dtype)], -1)

    def head(self, hidden: Tensor) -> Tensor:
        """Score the words."""
        return self.output(self.dropout(hidden))
