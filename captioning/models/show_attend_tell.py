"""Show, Attend and Tell (Xu, Ba, Kiros et al., ICML 2015), soft or hard by the attention handed in.

    m = dropout(ReLU(W mean_i a_i + b)),  h_0 = tanh(W_h m + b_h),  c_0 = tanh(W_c m + b_c)
    beta_t = sigma(w h_{t-1} + b)                a scalar gate, as in the paper and the authors' code
    z_t = beta_t * phi(a, alpha_t)               soft: the mean under alpha; hard: one region
    h_t, c_t = LSTM([E y_{t-1}; z_t], h_{t-1}, c_{t-1})
    p(y_t) = softmax(W_o dropout(tanh(W_h' dropout(h_t) + E y_{t-1} + W_z z_t)))

The paper's formula of the deep output has no tanh; the authors' code does, and so does this. Departures from
that code: layers that are not square begin as PyTorch's do, and the word vectors with a standard deviation of
0.1; both are N(0, 0.01) there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from captioning.models.base import Tree
from captioning.models.dropout import Dropout
from captioning.models.encoder import RawFeatures, masked_mean
from captioning.models.recurrent import Advance, LSTMState, RecurrentModel, lstm_update, orthogonal_gates


class ShowAttendTell(RecurrentModel):
    """LSTM with gated visual attention and deep output; memory: regions, keys, mask; state: (h, c).

    Args:
        feature_dim: D of a region as the encoder gives it.
        vocabulary_size: V, the four special ids included.
        embedding_dim: size of a word vector and of the deep output.
        hidden_dim: H of the LSTM.
        attention: makes the attention, called with value_dim and query_dim: `SoftAttention` or
            `HardAttention`.
        dropout: probability; 0.5 in the authors' code.
        encoder: what regions pass through before; None leaves them as they are, as the paper does.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        vocabulary_size: int,
        embedding_dim: int,
        hidden_dim: int,
        attention: Callable[..., nn.Module],
        dropout: float,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder = RawFeatures() if encoder is None else encoder
        self.vocabulary_size = vocabulary_size
        self.attention: Any = attention(value_dim=feature_dim, query_dim=hidden_dim)
        self.mean_layer = nn.Linear(feature_dim, feature_dim)
        self.start_hidden = nn.Linear(feature_dim, hidden_dim)
        self.start_cell = nn.Linear(feature_dim, hidden_dim)
        self.gate = nn.Linear(hidden_dim, 1)
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.word_gates = nn.Linear(embedding_dim, 4 * hidden_dim)
        self.context_gates = nn.Linear(feature_dim, 4 * hidden_dim, bias=False)
        self.state_gates = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.deep_hidden = nn.Linear(hidden_dim, embedding_dim)
        self.deep_context = nn.Linear(feature_dim, embedding_dim)
        self.output = nn.Linear(embedding_dim, vocabulary_size)
        self.dropout = Dropout(dropout)
        orthogonal_gates(self.state_gates, 4)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tree:
        """Prepare the attention keys."""
        return self.attention.prepare(self.encoder(features), mask)

    def start(self, memory: Tree) -> LSTMState:
        """Begin with what the mean region suggests."""
        mean = self.dropout(torch.relu(self.mean_layer(masked_mean(memory.values, memory.mask))))  # (B, D)
        hidden, cell = torch.tanh(self.start_hidden(mean)), torch.tanh(self.start_cell(mean))
        return LSTMState(hidden.float(), cell.float())

    def read(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Embed words: their part of the LSTM's gates (…, 4H), and the vectors (…, E) for the deep output."""
        said = self.embedding(tokens)
        return self.word_gates(said), said

    def advance(self, read: tuple[Tensor, ...], state: LSTMState, memory: Tree) -> Advance:
        """Look with the old state, then move the LSTM."""
        look = self.attention(state.hidden, memory)
        context = torch.sigmoid(self.gate(state.hidden)) * look.context  # (B, D)
        gates = read[0] + self.context_gates(context) + self.state_gates(state.hidden)
        state = lstm_update(gates, state.cell)
        return Advance((state.hidden, context), look.weights, state, look.extras)

    def finish(self, outputs: tuple[Tensor, ...], read: tuple[Tensor, ...]) -> Tensor:
        """Compute the deep output's hidden layer: (…, E)."""
        hidden, context = outputs
        return torch.tanh(self.deep_hidden(self.dropout(hidden)) + read[1] + self.deep_context(context))

    def head(self, hidden: Tensor) -> Tensor:
        """Score the words."""
        return self.output(self.dropout(hidden))
