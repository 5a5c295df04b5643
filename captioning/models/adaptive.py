"""Adaptive attention with a visual sentinel (Lu et al., CVPR 2017): not every word needs the image.

    h_t, m_t = LSTM([E y_{t-1}; v_g], h_{t-1}, m_{t-1})      v_g: the mean of the projected regions
    s_t = sigma(W_x x_t + W_h h_{t-1}) * tanh(m_t)           the sentinel
    alpha^ = softmax over [regions; sentinel] of w . tanh(W_v v_i + W_g h_t)
    c^_t = sum_i alpha^_i v_i + beta_t s_t                   beta_t = alpha^ of the sentinel
    p(y_t) = softmax(W tanh(W_p (c^_t + h_t)))

The attention returned covers the regions alone, renormalised; the extra `sentinel` is beta_t, which is 1
where the model did not look.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.errors import InputError
from captioning.models.attention import AdditiveAttention, Regions, masked_softmax, weighted_sum
from captioning.models.dropout import Dropout
from captioning.models.encoder import Encoder, masked_mean
from captioning.models.recurrent import Advance, LSTMState, RecurrentModel, lstm_update, zero_state


class AdaptiveMemory(NamedTuple):
    """Regions, keys and mask; and the global feature's part of gates and sentinel (B, 5H)."""

    regions: Regions
    global_gates: Tensor


class AdaptiveCaptioner(RecurrentModel):
    """LSTM with spatial attention and a sentinel; memory: regions, keys, mask; state: (h, c).

    Args:
        encoder: see `Encoder`; its output must be as large as H, because context, sentinel and h are added.
        vocabulary_size: V, the four special ids included.
        embedding_dim: size of a word vector.
        hidden_dim: H of the LSTM and of the sentinel.
        attention_dim: size of the attention's hidden layer.
        dropout: probability, on word vectors and before the output layers.

    Raises:
        InputError: the encoder's output has another size than H.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        vocabulary_size: int,
        embedding_dim: int,
        hidden_dim: int,
        attention_dim: int,
        dropout: float,
    ) -> None:
        super().__init__()
        if encoder.output_dim != hidden_dim:
            raise InputError(
                f"the encoder's output_dim is {encoder.output_dim} and model.hidden_dim is {hidden_dim}; "
                "adaptive attention adds regions to hidden vectors, so they must be equal: use "
                "encoder@model.encoder=projection_hidden"
            )
        self.encoder = encoder
        self.vocabulary_size, self.hidden_dim = vocabulary_size, hidden_dim
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
        """Encode the regions, compute their keys and the global feature's part of the gates."""
        values = self.encoder(features)  # (B, R, H)
        return AdaptiveMemory(
            self.attention.prepare(values, mask), self.global_gates(masked_mean(values, mask))
        )

    def start(self, memory: AdaptiveMemory) -> LSTMState:
        """Return zeros."""
        return zero_state(memory.global_gates, self.hidden_dim)

    def embed(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Compute the words' part of the gates: (…, 5H)."""
        return (self.word_gates(self.dropout(self.embedding(tokens))),)

    def advance(self, embedded: tuple[Tensor, ...], state: LSTMState, memory: AdaptiveMemory) -> Advance:
        """Update the LSTM, then attend to regions and sentinel with its new state."""
        gates = embedded[0] + memory.global_gates + self.state_gates(state.hidden)  # (B, 5H)
        gates, sentinel_gate = gates.split([4 * self.hidden_dim, self.hidden_dim], -1)
        state = lstm_update(gates, state.cell)
        sentinel = torch.sigmoid(sentinel_gate.float()) * torch.tanh(state.cell)  # (B, H)
        regions, query = memory.regions, self.attention.query(state.hidden)  # (B, A)
        scores = self.attention.energies(query, regions.keys)  # (B, R)
        sentinel_score = self.attention.energies(query, self.sentinel_key(sentinel)[:, None])  # (B, 1)
        # The sentinel is always real, whatever the mask of the regions.
        mask = None if regions.mask is None else functional.pad(regions.mask, (0, 1), value=True)
        weights = masked_softmax(torch.cat([scores, sentinel_score], -1), mask)  # (B, R+1)
        context = weighted_sum(weights[:, :-1], regions.values) + weights[:, -1:] * sentinel  # (B, H)
        attention = masked_softmax(scores, regions.mask)  # (B, R)
        return Advance((context + state.hidden,), attention, state, {"sentinel": weights[:, -1]})

    def finish(self, outputs: tuple[Tensor, ...], embedded: tuple[Tensor, ...]) -> Tensor:
        """Compute the hidden layer before the output: (…, H)."""
        return torch.tanh(self.deep(self.dropout(outputs[0])))

    def head(self, hidden: Tensor) -> Tensor:
        """Compute logits: (…, H) -> (…, V)."""
        return self.output(hidden)
