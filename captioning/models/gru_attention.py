"""The seed system: FC encoder, additive attention and a GRU (Keydana 2018, after the TensorFlow notebook).

    a_i = ReLU(W x_i + b)                                   encoder, 2048 -> 256
    z_t = attention(h_{t-1}; a)                             Bahdanau, 512
    h_t = GRU([z_t; E y_{t-1}], h_{t-1})                    512; h_0 = 0
    p(y_t) = softmax(W_2 f(W_1 h_t))                        512 -> 512 -> V

Repaired here: the GRU's state is carried from word to word (the post called it without one), and `activation`
f, which the post left out, makes the two output layers more than one linear map. Without dropout and with
`torch.nn.Identity` as activation the network has the post's 6,602,889 parameters at the post's sizes; tanh
has none.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.models.attention import AdditiveAttention, Regions
from captioning.models.base import CaptionModel, Output, Step, longest_first, pick
from captioning.models.encoder import FeatureProjection


class GRUAttention(CaptionModel):
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
    ) -> None:
        super().__init__()
        self.vocabulary_size, self.hidden_dim, self.encoder_dim = vocabulary_size, hidden_dim, encoder_dim
        self.encoder = FeatureProjection(feature_dim=feature_dim, encoder_dim=encoder_dim, dropout=dropout)
        self.attention = AdditiveAttention(
            value_dim=encoder_dim, query_dim=hidden_dim, attention_dim=attention_dim
        )
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.gru = nn.GRUCell(encoder_dim + embedding_dim, hidden_dim)
        self.output = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim), activation, nn.Linear(hidden_dim, vocabulary_size)
        )
        self.dropout = nn.Dropout(dropout)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Regions:
        """Project the regions and prepare their attention keys."""
        return self.attention.prepare(self.encoder(features), mask)

    def start(self, memory: Regions) -> Tensor:
        """Begin with h = 0, as the post does: (B, H) float32."""
        return memory.values.new_zeros(len(memory.values), self.hidden_dim, dtype=torch.float32)

    def step(self, tokens: Tensor, state: Tensor, memory: Regions) -> Step:
        """Look with the old state, then move the GRU by what was seen and the last word."""
        context, weights = self.attention(state, memory)
        seen_and_said = torch.cat([context, self.dropout(self.embedding(tokens)).to(context.dtype)], dim=-1)
        from_input = functional.linear(seen_and_said, self.gru.weight_ih, self.gru.bias_ih)  # (B, 3H)
        hidden = gru_update(from_input, self._from_state(state), state)
        return Step(hidden, weights, hidden)

    def unroll(self, memory: Regions, tokens: Tensor) -> Output:
        """Compute the words' half of the GRU's input before the loop, and drop captions as they end."""
        rows = longest_first(tokens)
        sorted_memory = pick(memory, rows.order)
        said = self.dropout(self.embedding(tokens[rows.order]))  # (B, T, E)
        for_context, for_word = self.gru.weight_ih.split([self.encoder_dim, said.shape[-1]], dim=1)
        from_word = functional.linear(said, for_word, self.gru.bias_ih)  # (B, T, 3H)
        for_context = for_context.to(from_word.dtype)  # once, not at every step
        state, hidden, attention = self.start(sorted_memory), [], []
        for t, running in enumerate(rows.running):
            state = state[:running]
            context, weights = self.attention(state, pick(sorted_memory, slice(running)))
            from_input = from_word[:running, t] + functional.linear(context, for_context)
            state = gru_update(from_input, self._from_state(state), state)
            hidden.append(state)
            attention.append(weights)
        steps = tokens.shape[1] - len(hidden)
        restored = (functional.pad(rows.restore(part), (0, 0, 0, steps)) for part in (hidden, attention))
        return Output(next(restored), next(restored), memory)

    def head(self, hidden: Tensor) -> Tensor:
        """Score the words: (…, H) -> (…, V)."""
        return self.output(self.dropout(hidden))

    def _from_state(self, state: Tensor) -> Tensor:
        return functional.linear(state, self.gru.weight_hh, self.gru.bias_hh)  # (B, 3H)


def gru_update(from_input: Tensor, from_state: Tensor, state: Tensor) -> Tensor:
    """Apply the gates (Cho et al. 2014, cuDNN's form) to the projections (B, 3H) and the state (B, H)."""
    reset_in, update_in, new_in = from_input.float().chunk(3, dim=-1)
    reset_state, update_state, new_state = from_state.float().chunk(3, dim=-1)
    reset = torch.sigmoid(reset_in + reset_state)
    update = torch.sigmoid(update_in + update_state)
    new = torch.tanh(new_in + reset * new_state)
    return new + update * (state - new)
