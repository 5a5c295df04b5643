"""The seed system: FC encoder, additive attention and a GRU (Keydana 2018, after the TensorFlow notebook).

    a_i = ReLU(W x_i + b)                                   encoder, 2048 -> 256
    z_t = attention(h_{t-1}; a)                             Bahdanau, 512
    h_t = GRU([z_t; E y_{t-1}], h_{t-1})                    512; h_0 = 0
    p(y_t) = softmax(W_2 f(W_1 h_t))                        512 -> 512 -> V

Repaired here: the GRU's state is carried from word to word (the post called it without one: hand in
`forgotten` to see what that costs), and `activation` f, which the post left out, makes the two output layers
more than one linear map. At the post's sizes the
network has the post's 6,602,889 parameters (its GRU has cuDNN's two biases).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from captioning.models.attention import AdditiveAttention, Regions
from captioning.models.dropout import Dropout
from captioning.models.encoder import FeatureProjection
from captioning.models.recurrent import Advance, RecurrentModel, gru_update


def carried(state: Tensor) -> Tensor:
    """Move on from the last hidden vector, as a recurrent network does: (B, H) -> (B, H)."""
    return state


def forgotten(state: Tensor) -> Tensor:
    """Move on from zeros for every word, as the post does (flaw S1): only attention sees the old state."""
    return torch.zeros_like(state)


class GRUAttention(RecurrentModel):
    """FC encoder + additive attention + GRU; memory: projected regions and keys, state: h.

    Args:
        feature_dim: D of the cache.
        vocabulary_size: V, the four special ids included.
        encoder_dim: size of a projected region.
        attention_dim: size of the attention's common space.
        embedding_dim: size of a word vector.
        hidden_dim: H of the GRU and of the first output layer.
        dropout: probability, on projected regions, word vectors and the hidden vector before the head.
        activation: between the two output layers.
        recurrence: what of the old state the GRU moves on from: `carried`, or the post's `forgotten`.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        vocabulary_size: int,
        encoder_dim: int,
        attention_dim: int,
        embedding_dim: int,
        hidden_dim: int,
        dropout: float,
        activation: nn.Module,
        recurrence: Callable[[Tensor], Tensor] = carried,
    ) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.vocabulary_size, self.hidden_dim = vocabulary_size, hidden_dim
        self.encoder = FeatureProjection(feature_dim=feature_dim, encoder_dim=encoder_dim, dropout=dropout)
        self.attention = AdditiveAttention(
            value_dim=encoder_dim, query_dim=hidden_dim, attention_dim=attention_dim
        )
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        # The GRU's input matrix in two halves: the word's is multiplied before the loop, the context's
        # inside.
        self.word_gates = nn.Linear(embedding_dim, 3 * hidden_dim)
        self.context_gates = nn.Linear(encoder_dim, 3 * hidden_dim, bias=False)
        self.state_gates = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.output = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim), activation, nn.Linear(hidden_dim, vocabulary_size)
        )
        self.dropout = Dropout(dropout)
        for gates in (self.word_gates, self.context_gates, self.state_gates):
            for parameter in gates.parameters():
                nn.init.uniform_(parameter, -(hidden_dim**-0.5), hidden_dim**-0.5)  # as torch.nn.GRUCell

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Regions:
        """Project the regions and prepare their attention keys."""
        return self.attention.prepare(self.encoder(features), mask)

    def start(self, memory: Regions) -> Tensor:
        """Begin with h = 0, as the post does: (B, H) float32."""
        return memory.values.new_zeros(len(memory.values), self.hidden_dim, dtype=torch.float32)

    def read(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Embed words and take their half of the GRU's input: (…, 3H)."""
        return (self.word_gates(self.dropout(self.embedding(tokens))),)

    def advance(self, read: tuple[Tensor, ...], state: Tensor, memory: Regions) -> Advance:
        """Look with the old state, then move the GRU by what was seen and the last word."""
        context, weights = self.attention(state, memory)
        before = self.recurrence(state)
        hidden = gru_update(read[0] + self.context_gates(context), self.state_gates(before), before)
        return Advance((hidden,), weights, hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """Score the words: (…, H) -> (…, V)."""
        return self.output(self.dropout(hidden))
