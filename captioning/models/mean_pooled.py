"""A baseline without attention: the mean region is the LSTM's first input (Vinyals et al., CVPR 2015, "NIC").

    h_0, c_0 = LSTM(W mean_i a_i, 0, 0),   h_t, c_t = LSTM(E y_{t-1}, h_{t-1}, c_{t-1}),   p(y_t) =
    softmax(W_o h_t)

It shows what attention adds. The network that computes the features is not trained along.
"""

from torch import Tensor, nn

from captioning.models.dropout import Dropout
from captioning.models.encoder import Encoder, masked_mean
from captioning.models.recurrent import Advance, LSTMState, RecurrentModel, lstm_update, zero_state


class MeanPooled(RecurrentModel):
    """LSTM that reads the mean region once, before the first word; memory: that mean's gates; state: (h, c).

    Args:
        encoder: see `Encoder`; the paper has none.
        vocabulary_size: V, the four special ids included.
        embedding_dim: size of a word vector and of the projected mean region.
        hidden_dim: H of the LSTM.
        dropout: probability, on the LSTM's inputs and before the head.
    """

    attends_to_regions = False

    def __init__(
        self, *, encoder: Encoder, vocabulary_size: int, embedding_dim: int, hidden_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.vocabulary_size, self.hidden_dim = vocabulary_size, hidden_dim
        self.project = nn.Linear(encoder.output_dim, embedding_dim)
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.input_gates = nn.Linear(embedding_dim, 4 * hidden_dim)
        self.state_gates = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.output = nn.Linear(hidden_dim, vocabulary_size)
        self.dropout = Dropout(dropout)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the LSTM's gates for the mean region: (B, 4H)."""
        mean = masked_mean(self.encoder(features), mask)  # (B, D)
        return self.input_gates(self.dropout(self.project(mean)))

    def start(self, memory: Tensor) -> LSTMState:
        """Return the state after the mean region."""
        return lstm_update(memory, zero_state(memory, self.hidden_dim).cell)

    def embed(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Compute the words' part of the gates: (…, 4H)."""
        return (self.input_gates(self.dropout(self.embedding(tokens))),)

    def advance(self, embedded: tuple[Tensor, ...], state: LSTMState, memory: Tensor) -> Advance:
        """Update the LSTM with one word; there is no attention."""
        state = lstm_update(embedded[0] + self.state_gates(state.hidden), state.cell)
        return Advance((state.hidden,), None, state)

    def head(self, hidden: Tensor) -> Tensor:
        """Compute logits: (…, H) -> (…, V)."""
        return self.output(self.dropout(hidden))
