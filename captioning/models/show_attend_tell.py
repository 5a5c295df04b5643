"""Show, Attend and Tell (Xu, Ba, Kiros et al., ICML 2015), soft or hard by the attention handed in.

    m = dropout(ReLU(W mean_i a_i + b)),  h_0 = tanh(W_h m + b_h),  c_0 = tanh(W_c m + b_c)
    beta_t = sigma(w h_{t-1} + b)                a scalar gate, as in the paper and the authors' code
    z_t = beta_t * phi(a, alpha_t)               soft: the mean under alpha; hard: one region
    h_t, c_t = LSTM([E y_{t-1}; z_t], h_{t-1}, c_{t-1})
    p(y_t) = softmax(W_o dropout(tanh(W_h' dropout(h_t) + E y_{t-1} + W_z z_t)))

The paper's formula of the deep output has no tanh; the authors' code does, and so does this. Departures from
that code: layers that are not square are initialised as PyTorch does, and word vectors with a standard
deviation of 0.1; both are N(0, 0.01) there.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from captioning.models.base import Tree
from captioning.models.dropout import Dropout
from captioning.models.encoder import Encoder, masked_mean
from captioning.models.recurrent import (
    Advance,
    InitialLSTMState,
    LSTMState,
    RecurrentModel,
    lstm_update,
    orthogonal_gates,
)


class ShowAttendTell(RecurrentModel):
    """LSTM with gated visual attention and deep output; memory: regions, keys, mask; state: (h, c).

    Args:
        encoder: see `Encoder`; the paper has none.
        vocabulary_size: V, the four special ids included.
        embedding_dim: size of a word vector and of the deep output.
        hidden_dim: H of the LSTM.
        attention: called with `value_dim` and `query_dim`, returns a `SoftAttention` or a `HardAttention`.
        dropout: probability; 0.5 in the authors' code.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        vocabulary_size: int,
        embedding_dim: int,
        hidden_dim: int,
        attention: Callable[..., nn.Module],
        dropout: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.vocabulary_size, region_dim = vocabulary_size, encoder.output_dim
        self.attention: Any = attention(value_dim=region_dim, query_dim=hidden_dim)
        self.samples_attention = bool(self.attention.samples_regions)
        self.mean_layer = nn.Linear(region_dim, region_dim)
        self.initial_state = InitialLSTMState(input_dim=region_dim, hidden_dim=hidden_dim)
        self.gate = nn.Linear(hidden_dim, 1)
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.word_gates = nn.Linear(embedding_dim, 4 * hidden_dim)
        self.context_gates = nn.Linear(region_dim, 4 * hidden_dim, bias=False)
        self.state_gates = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.deep_hidden = nn.Linear(hidden_dim, embedding_dim)
        self.deep_context = nn.Linear(region_dim, embedding_dim)
        self.output = nn.Linear(embedding_dim, vocabulary_size)
        self.dropout = Dropout(dropout)
        orthogonal_gates(self.state_gates, 4)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def expected_attention(self) -> AbstractContextManager[None]:
        """Return a context in which hard attention uses expectations in every batch."""
        return self.attention.expected()

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tree:
        """Encode the regions and compute their attention keys."""
        return self.attention.prepare(self.encoder(features), mask)

    def start(self, memory: Tree) -> LSTMState:
        """Compute the first state from the mean region."""
        mean = masked_mean(memory.values, memory.mask)  # (B, D)
        return self.initial_state(self.dropout(torch.relu(self.mean_layer(mean))))

    def embed(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Compute the words' part of the gates (…, 4H), and their vectors (…, E) for the deep output."""
        words = self.embedding(tokens)  # (…, E)
        return self.word_gates(words), words

    def advance(self, embedded: tuple[Tensor, ...], state: LSTMState, memory: Tree) -> Advance:
        """Attend with the old state, then update the LSTM."""
        attended = self.attention(state.hidden, memory)
        context = torch.sigmoid(self.gate(state.hidden)) * attended.context  # (B, D)
        gates = embedded[0] + self.context_gates(context) + self.state_gates(state.hidden)  # (B, 4H)
        state = lstm_update(gates, state.cell)
        return Advance((state.hidden, context), attended.weights, state, attended.extras)

    def finish(self, outputs: tuple[Tensor, ...], embedded: tuple[Tensor, ...]) -> Tensor:
        """Compute the hidden layer of the deep output: (…, E)."""
        hidden, context = outputs
        return torch.tanh(self.deep_hidden(self.dropout(hidden)) + embedded[1] + self.deep_context(context))

    def head(self, hidden: Tensor) -> Tensor:
        """Compute logits: (…, E) -> (…, V)."""
        return self.output(self.dropout(hidden))
