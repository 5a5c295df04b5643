"""Bottom-Up and Top-Down attention (Anderson et al., CVPR 2018): an attention LSTM and a language LSTM.

    h1_t = LSTM1([h2_{t-1}; mean_i v_i; E y_{t-1}], h1_{t-1})
    a_i = w . tanh(W_v v_i + W_h h1_t),  alpha = softmax over the real regions     the query is h1 at time t
    h2_t = LSTM2([sum_i alpha_i v_i; h1_t], h2_{t-1}),   p(y_t) = softmax(W_p h2_t + b_p)

States start at zero, forget biases at one. `dropout` is 0 in the authors' network; re-implementations use
0.5. Departures: the layers of the attention have biases, weights are initialised as PyTorch does, unknown
words are targets too, and training is by Adam, without the authors' SGD and its factor of 20 on the loss.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from captioning.models.attention import AdditiveAttention, Regions
from captioning.models.dropout import Dropout
from captioning.models.encoder import Encoder, masked_mean
from captioning.models.recurrent import (
    Advance,
    LSTMState,
    RecurrentModel,
    lstm_update,
    set_forget_bias,
    zero_state,
)


class UpDownMemory(NamedTuple):
    """Regions for the attention, and the mean region's part of LSTM1's gates (B, 4H)."""

    regions: Regions
    mean_gates: Tensor


class UpDownState(NamedTuple):
    """States of the attention LSTM and of the language LSTM."""

    attention: LSTMState
    language: LSTMState


class UpDown(RecurrentModel):
    """Two LSTMs over a variable number of regions; memory: regions, keys, mask; state: two (h, c).

    Args:
        encoder: see `Encoder`; the paper has none.
        vocabulary_size: V, the four special ids included.
        embedding_dim: size of a word vector.
        hidden_dim: H of both LSTMs.
        attention_dim: size of the attention's hidden layer.
        dropout: probability, on word vectors and before the head.
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
        self.encoder = encoder
        self.vocabulary_size, self.hidden_dim = vocabulary_size, hidden_dim
        self.attention = AdditiveAttention(
            value_dim=encoder.output_dim, query_dim=hidden_dim, attention_dim=attention_dim
        )
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.word_gates = nn.Linear(embedding_dim, 4 * hidden_dim)
        self.mean_gates = nn.Linear(encoder.output_dim, 4 * hidden_dim, bias=False)
        self.attention_gates = nn.Linear(2 * hidden_dim, 4 * hidden_dim, bias=False)  # of [h2; h1]
        self.context_gates = nn.Linear(encoder.output_dim, 4 * hidden_dim)
        self.language_gates = nn.Linear(2 * hidden_dim, 4 * hidden_dim, bias=False)  # of [h1; h2]
        self.output = nn.Linear(hidden_dim, vocabulary_size)
        self.dropout = Dropout(dropout)
        for gates in (self.word_gates, self.context_gates):
            set_forget_bias(gates, 1.0)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> UpDownMemory:
        """Encode the regions, compute their keys and the mean region's part of the first LSTM's gates."""
        values = self.encoder(features)  # (B, R, D)
        return UpDownMemory(self.attention.prepare(values, mask), self.mean_gates(masked_mean(values, mask)))

    def start(self, memory: UpDownMemory) -> UpDownState:
        """Return zeros."""
        zeros = zero_state(memory.mean_gates, self.hidden_dim)
        return UpDownState(zeros, zeros)

    def embed(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Compute the words' part of the first LSTM's gates: (…, 4H)."""
        return (self.word_gates(self.dropout(self.embedding(tokens))),)

    def advance(self, embedded: tuple[Tensor, ...], state: UpDownState, memory: UpDownMemory) -> Advance:
        """Update the attention LSTM, attend with its new state, update the language LSTM."""
        attention, language = state
        hidden = torch.cat([language.hidden, attention.hidden], -1)  # (B, 2H)
        gates = embedded[0] + memory.mean_gates + self.attention_gates(hidden)  # (B, 4H)
        attention = lstm_update(gates, attention.cell)
        context, weights = self.attention(attention.hidden, memory.regions)  # (B, D), (B, R)
        hidden = torch.cat([attention.hidden, language.hidden], -1)  # (B, 2H)
        language = lstm_update(self.context_gates(context) + self.language_gates(hidden), language.cell)
        return Advance((language.hidden,), weights, UpDownState(attention, language))

    def head(self, hidden: Tensor) -> Tensor:
        """Compute logits: (…, H) -> (…, V)."""
        return self.output(self.dropout(hidden))
