"""A baseline without attention: the mean region is the LSTM's first input (Vinyals et al., CVPR 2015, "NIC").

What attention adds is measured against it.
"""

from torch import Tensor, nn

from captioning.models.dropout import Dropout
from captioning.models.encoder import as_computed, masked_mean
from captioning.models.recurrent import Advance, LSTMState, RecurrentModel, lstm_update, zero_state


class MeanPooled(RecurrentModel):
    """LSTM that sees the mean region once, before the first word; memory: that mean's gates; state: (h, c).

    Args:
        feature_dim: D of the cache.
        vocabulary_size: V, the four special ids included.
        embedding_dim: size of a word vector and of the projected mean region.
        hidden_dim: H of the LSTM.
        dropout: probability, on the LSTM's inputs and before the head.
    """

    def __init__(
        self, *, feature_dim: int, vocabulary_size: int, embedding_dim: int, hidden_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.vocabulary_size, self.hidden_dim = vocabulary_size, hidden_dim
        self.project = nn.Linear(feature_dim, embedding_dim)
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.input_gates = nn.Linear(embedding_dim, 4 * hidden_dim)
        self.state_gates = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.output = nn.Linear(hidden_dim, vocabulary_size)
        self.dropout = Dropout(dropout)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Project the mean region to the LSTM's gates: (B, 4H)."""
        mean = masked_mean(as_computed(features, self.project.weight), mask)
        return self.input_gates(self.dropout(self.project(mean)))

    def start(self, memory: Tensor) -> LSTMState:
        """Show the LSTM the image."""
        return lstm_update(memory, zero_state(memory, self.hidden_dim).cell)

    def read(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Embed words: their part of the gates (…, 4H)."""
        return (self.input_gates(self.dropout(self.embedding(tokens))),)

    def advance(self, read: tuple[Tensor, ...], state: LSTMState, memory: Tensor) -> Advance:
        """Move the LSTM by one word."""
        state = lstm_update(read[0] + self.state_gates(state.hidden), state.cell)
        return Advance((state.hidden,), None, state)

    def head(self, hidden: Tensor) -> Tensor:
        """Score the words."""
        return self.output(self.dropout(hidden))
