"""Adaptive attention with a visual sentinel (Lu et al., CVPR 2017): it need not look for every word.

    h_t, m_t = LSTM([E y_{t-1}; v_g], h_{t-1}, m_{t-1})      v_g: the mean of the projected regions
    s_t = sigma(W_x x_t + W_h h_{t-1}) * tanh(m_t)           the sentinel
    alpha^ = softmax over [regions; sentinel] of w . tanh(W_v v_i + W_g h_t)
    c^_t = sum_i alpha^_i v_i + beta_t s_t                   beta_t = alpha^ of the sentinel
    p(y_t) = softmax(W tanh(W_p (c^_t + h_t)))

The attention shown is over the regions, renormalised; the extra `sentinel` is beta_t, 1 where it did not
look.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.models.attention import AdditiveAttention, Regions, masked_softmax, weighted_sum
from captioning.models.dropout import Dropout
from captioning.models.encoder import FeatureProjection, masked_mean
from captioning.models.recurrent import Advance, LSTMState, RecurrentModel, lstm_update, zero_state


class AdaptiveMemory(NamedTuple):
    """Projected regions, keys and mask, and the global feature's part of gates and sentinel (B, 5H)."""

    regions: Regions
    global_gates: Tensor


class AdaptiveAttention(RecurrentModel):
    """LSTM with spatial attention and a sentinel; memory: projected regions; state: (h, c).

    Args:
        feature_dim: D of the cache.
        vocabulary_size: V, the four special ids included.
        embedding_dim: size of a word vector.
        hidden_dim: H of the LSTM, of a projected region and of the sentinel.
        attention_dim: size of the attention's common space.
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
        dropout: float,
    ) -> None:
        super().__init__()
        self.vocabulary_size, self.hidden_dim = vocabulary_size, hidden_dim
        self.encoder = FeatureProjection(feature_dim=feature_dim, encoder_dim=hidden_dim, dropout=dropout)
        self.attention = AdditiveAttention(
            value_dim=hidden_dim, query_dim=hidden_dim, attention_dim=attention_dim
        )
        self.sentinel_key = nn.Linear(hidden_dim, attention_dim)
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        # Four LSTM gates and the sentinel's gate, which has the same inputs.
        self.word_gates = nn.Linear(embedding_dim, 5 * hidden_dim)
        self.global_gates = nn.Linear(hidden_dim, 5 * hidden_dim, bias=False)
        self.state_gates = nn.Linear(hidden_dim, 5 * hidden_dim, bias=False)
        self.deep = nn.Linear(hidden_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, vocabulary_size)
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> AdaptiveMemory:
        """Project the regions, prepare keys and the global feature's part of the gates."""
        values = self.encoder(features)
        return AdaptiveMemory(
            self.attention.prepare(values, mask), self.global_gates(masked_mean(values, mask))
        )

    def start(self, memory: AdaptiveMemory) -> LSTMState:
        """Begin with zeros."""
        return zero_state(memory.global_gates, self.hidden_dim)

    def read(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Embed words: their part of the gates (…, 5H)."""
        return (self.word_gates(self.dropout(self.embedding(tokens))),)

    def advance(self, read: tuple[Tensor, ...], state: LSTMState, memory: AdaptiveMemory) -> Advance:
        """Move the LSTM, then look with its new state at the regions or at the sentinel."""
        gates = read[0] + memory.global_gates + self.state_gates(state.hidden)  # (B, 5H)
        gates, sentinel_gate = gates.split([4 * self.hidden_dim, self.hidden_dim], -1)
        state = lstm_update(gates, state.cell)
        sentinel = torch.sigmoid(sentinel_gate.float()) * torch.tanh(state.cell)  # (B, H)
        regions, query = memory.regions, self.attention.query(state.hidden)  # (B, A)
        scores = self.attention.energies(query, regions.keys)  # (B, R)
        own = self.attention.energies(query, self.sentinel_key(sentinel)[:, None])  # (B, 1)
        mask = None if regions.mask is None else functional.pad(regions.mask, (0, 1), value=True)
        weights = masked_softmax(torch.cat([scores, own], -1), mask)  # (B, R+1)
        context = weighted_sum(weights[:, :-1], regions.values) + weights[:, -1:] * sentinel  # (B, H)
        look = masked_softmax(scores, regions.mask)
        return Advance((context + state.hidden,), look, state, {"sentinel": weights[:, -1]})

    def finish(self, outputs: tuple[Tensor, ...], read: tuple[Tensor, ...]) -> Tensor:
        """Compute the deep output's hidden layer: (…, H)."""
        return torch.tanh(self.deep(self.dropout(outputs[0])))

    def head(self, hidden: Tensor) -> Tensor:
        """Score the words."""
        return self.output(hidden)
