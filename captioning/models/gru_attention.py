"""The model of the post (Keydana 2018, after a TensorFlow notebook): projection, additive attention, GRU.

    a_i = ReLU(W x_i + b)                                   the encoder, 2048 -> 256
    z_t = attention(h_{t-1}; a)                             Bahdanau, 512
    h_t = GRU([z_t; E y_{t-1}], h_{t-1})                    512; h_0 = 0
    p(y_t) = softmax(W_2 f(W_1 h_t))                        512 -> 512 -> V

Corrected here: the GRU's state is carried from word to word, where the post calls the GRU without one
(`ResetState` shows what that costs); and the post has no `activation` f, so that its two output layers are
one linear map.

At the post's sizes the network has the post's 6,602,889 parameters (its GRU has cuDNN's two biases).

Where the post, like Bahdanau et al., asks with h_{t-1}, attention has not read y_{t-1} yet: after "a red" it
looks for what is red only as far as h_{t-1} already knew that word. `word_query` adds the word to the
question, z_t = attention(h_{t-1} + W_q E y_{t-1}; a); what that changes is in notebooks/2_attention.
"""

import torch
from torch import Tensor, nn

from captioning.models.attention import AdditiveAttention, Regions
from captioning.models.dropout import Dropout
from captioning.models.encoder import Encoder
from captioning.models.recurrent import Advance, RecurrentModel, gru_update


class CarriedState(nn.Module):
    """The recurrence of a GRU: its next state is computed from the last one."""

    def forward(self, state: Tensor) -> Tensor:
        """Return the state (B, H) itself."""
        return state


class ResetState(nn.Module):
    """The post's recurrence (flaw S1): every state is computed from zeros; only attention reads the last."""

    def forward(self, state: Tensor) -> Tensor:
        """Return zeros like the state (B, H)."""
        return torch.zeros_like(state)


class GRUAttention(RecurrentModel):
    """Additive attention + GRU; memory: regions, keys, mask; state: h.

    Args:
        encoder: see `Encoder`; the post projects regions to 256.
        vocabulary_size: V, the four special ids included.
        attention_dim: size of the attention's hidden layer.
        embedding_dim: size of a word vector.
        hidden_dim: H of the GRU and of the first output layer.
        dropout: probability, on word vectors and before the head.
        activation: between the two output layers.
        recurrence: the state that the GRU starts each word from: `CarriedState`, or the post's `ResetState`.
        word_query: maps the last word's vector (…, E) to what it adds to the attention's query (…, H); None
            asks with the state alone, as in the post.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        vocabulary_size: int,
        attention_dim: int,
        embedding_dim: int,
        hidden_dim: int,
        dropout: float,
        activation: nn.Module,
        recurrence: nn.Module,
        word_query: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.recurrence, self.word_query = encoder, recurrence, word_query
        self.vocabulary_size, self.hidden_dim = vocabulary_size, hidden_dim
        self.attention = AdditiveAttention(
            value_dim=encoder.output_dim, query_dim=hidden_dim, attention_dim=attention_dim
        )
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        # The GRU's input matrix in two parts: the word's is applied before the loop, the context's inside.
        self.word_gates = nn.Linear(embedding_dim, 3 * hidden_dim)
        self.context_gates = nn.Linear(encoder.output_dim, 3 * hidden_dim, bias=False)
        self.state_gates = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.output = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim), activation, nn.Linear(hidden_dim, vocabulary_size)
        )
        self.dropout = Dropout(dropout)
        for gates in (self.word_gates, self.context_gates, self.state_gates):
            for parameter in gates.parameters():
                nn.init.uniform_(parameter, -(hidden_dim**-0.5), hidden_dim**-0.5)  # as torch.nn.GRUCell

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Regions:
        """Encode the regions and compute their attention keys."""
        return self.attention.prepare(self.encoder(features), mask)

    def start(self, memory: Regions) -> Tensor:
        """Return h = 0, as in the post: (B, H) float32."""
        return memory.values.new_zeros(len(memory.values), self.hidden_dim, dtype=torch.float32)

    def embed(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Compute the words' part of the GRU's input (…, 3H) and, with `word_query`, of the query (…, H)."""
        words = self.dropout(self.embedding(tokens))  # (…, E)
        gates = self.word_gates(words)
        return (gates,) if self.word_query is None else (gates, self.word_query(words))

    def advance(self, embedded: tuple[Tensor, ...], state: Tensor, memory: Regions) -> Advance:
        """Attend with the old state, then update the GRU with context and word."""
        query = state if self.word_query is None else state + embedded[1]  # (B, H)
        context, weights = self.attention(query, memory)  # (B, D), (B, R)
        before = self.recurrence(state)  # (B, H)
        gates = embedded[0] + self.context_gates(context)  # (B, 3H)
        hidden = gru_update(gates, self.state_gates(before), before)  # (B, H)
        return Advance((hidden,), weights, hidden)

    def head(self, hidden: Tensor) -> Tensor:
        """Compute logits: (…, H) -> (…, V)."""
        return self.output(self.dropout(hidden))
