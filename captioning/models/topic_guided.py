"""Topic-Guided Attention (Zhu, Xue and Yuan, 2018): what the image is about steers where the decoder looks.

    T = softmax(W_2 dropout(ReLU(W_1 mean_i a_i)))                    the topic, predicted from the image
    e_i = w . ReLU(W_a a_i + W_h h_{t-1} + W_T T + b)                 spatial attention
    z_t = beta_t sum_i softmax(e)_i a_i,  beta_t = sigma(w h_{t-1} + b)
    u_k = w' . ReLU(U E[w_k] + W_h' h_{t-1} + W_T' T + b') + log q_k  semantic attention, over attribute words
    s_t = sum_k softmax(u)_k E[w_k]
    h_t, c_t = LSTM([E y_{t-1}; z_t; s_t], h_{t-1}, c_{t-1})
    p(y_t) = softmax(W_o dropout(tanh(E y_{t-1} + W_h dropout(h_t) + W_z z_t)))

The w_k are the attribute words that the image most probably has, q_k their predicted probabilities; the term
log q_k is ours, so that the caption's likelihood trains the prediction too. Topics and attributes come from
the image alone: `objectives/topic_guided.py` teaches the heads, from training captions. (The authors'
released code takes both from the reference captions even at test, and its semantic softmax runs over one
column.) With a linear score the topic would cancel in the softmax; the ReLU makes it act. `topic_to` sends
the topic elsewhere, to measure what the guidance is worth: as one more input of the LSTM, or nowhere.

Other departures from that code: features are not batch-normalised, the topic head is two layers on the mean
region, weights begin as PyTorch's do with word vectors of a standard deviation of 0.1, and dropout also
falls on the LSTM's word input.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.errors import InputError
from captioning.models.attention import Regions, masked_softmax, weighted_sum
from captioning.models.dropout import Dropout
from captioning.models.encoder import RawFeatures, masked_mean
from captioning.models.recurrent import Advance, LSTMState, RecurrentModel, lstm_update, orthogonal_gates
from captioning.vocabulary import UNKNOWN


class TopicMemory(NamedTuple):
    """What is read again for every word.

    regions: features (B, R, D) and their keys, the topic's part included.
    words: vectors of the K likely attribute words (B, K, E) and their keys, the topic's part included.
    prior: (B, K) log q of these words.
    topic_gates: the topic's part of the LSTM's gates (B, 4H), or 0.
    topic_logits: (B, topics).
    attribute_logits: (B, attributes), each for a sigmoid.
    """

    regions: Regions
    words: Regions
    prior: Tensor
    topic_gates: Tensor
    topic_logits: Tensor
    attribute_logits: Tensor


class GuidedAttention(nn.Module):
    """Additive attention with ReLU whose keys know the topic, if there is a `topic_dim`."""

    def __init__(self, *, value_dim: int, query_dim: int, topic_dim: int | None, attention_dim: int) -> None:
        super().__init__()
        self.key = nn.Linear(value_dim, attention_dim)
        self.topic = None if topic_dim is None else nn.Linear(topic_dim, attention_dim, bias=False)
        self.query = nn.Linear(query_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1)

    def prepare(self, values: Tensor, mask: Tensor | None, topic: Tensor) -> Regions:
        """Project values (B, R, ·) and topic (B, topics) once an image."""
        keys = self.key(values)
        return Regions(values, keys if self.topic is None else keys + self.topic(topic)[:, None], mask)

    def energy(self, query: Tensor, regions: Regions) -> Tensor:
        """Score the values for queries (B, H): (B, R)."""
        return self.score((regions.keys + self.query(query)[:, None]).relu_()).squeeze(-1)


def _ids_of_ranks(ranks: Sequence[int], vocabulary_size: int, num_likely: int) -> tuple[int, int]:
    """Give the ids from the first rank on, up to but not with the second, of words sorted by frequency."""
    first, stop = ranks
    if not (1 <= first < stop <= vocabulary_size - UNKNOWN and num_likely <= stop - first):
        raise InputError(
            f"model.attribute_ranks={list(ranks)} with model.num_likely={num_likely} does not fit "
            f"{vocabulary_size - UNKNOWN - 1} words; ranks start at 1 and must hold num_likely words"
        )
    return UNKNOWN + first, UNKNOWN + stop


class TopicGuided(RecurrentModel):
    """LSTM with topic-guided spatial and semantic attention; state: (h, c).

    Args:
        feature_dim: D of a region as the encoder gives it.
        vocabulary_size: V, the four special ids included.
        embedding_dim: size of a word vector and of the deep output.
        hidden_dim: H of the LSTM and of the two heads' hidden layer.
        attention_dim: size of both attentions' common space.
        num_topics: of the topic model.
        attribute_ranks: which words are attributes, by their rank in frequency: from the first, up to but not
            with the second; the authors' Flickr8k variant takes ranks 51 to 150.
        num_likely: K, attribute words looked at for an image.
        dropout: probability.
        topic_to: `attention`, `lstm` or `nothing`.
        encoder: what regions pass through before; None leaves them as they are, as the paper does.

    Raises:
        InputError: the vocabulary has no words of these ranks, or fewer than K; an unknown `topic_to`.
    """

    def __init__(
        self,
        *,
        feature_dim: int,
        vocabulary_size: int,
        embedding_dim: int,
        hidden_dim: int,
        attention_dim: int,
        num_topics: int,
        attribute_ranks: Sequence[int],
        num_likely: int,
        dropout: float,
        topic_to: str = "attention",
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder = RawFeatures() if encoder is None else encoder
        self.vocabulary_size, self.num_likely = vocabulary_size, num_likely
        self.attribute_ids = _ids_of_ranks(attribute_ranks, vocabulary_size, num_likely)
        if topic_to not in ("attention", "lstm", "nothing"):
            raise InputError(f"model.topic_to is {topic_to!r}; it is attention, lstm or nothing")
        attend = partial(
            GuidedAttention,
            query_dim=hidden_dim,
            topic_dim=num_topics if topic_to == "attention" else None,
            attention_dim=attention_dim,
        )
        self.topic_gates = nn.Linear(num_topics, 4 * hidden_dim, bias=False) if topic_to == "lstm" else None
        self.spatial, self.semantic = attend(value_dim=feature_dim), attend(value_dim=embedding_dim)
        self.topic_head, self.attribute_head = (
            nn.Sequential(
                nn.Linear(feature_dim, hidden_dim), nn.ReLU(), Dropout(dropout), nn.Linear(hidden_dim, n)
            )
            for n in (num_topics, self.attribute_ids[1] - self.attribute_ids[0])
        )
        self.start_hidden = nn.Linear(feature_dim, hidden_dim)
        self.start_cell = nn.Linear(feature_dim, hidden_dim)
        self.gate = nn.Linear(hidden_dim, 1)
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.word_gates = nn.Linear(embedding_dim, 4 * hidden_dim)
        self.context_gates = nn.Linear(feature_dim + embedding_dim, 4 * hidden_dim, bias=False)
        self.state_gates = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.deep_hidden = nn.Linear(hidden_dim, embedding_dim)
        self.deep_context = nn.Linear(feature_dim, embedding_dim)
        self.output = nn.Linear(embedding_dim, vocabulary_size)
        self.dropout = Dropout(dropout)
        orthogonal_gates(self.state_gates, 4)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> TopicMemory:
        """Predict topic and attributes, and prepare the keys of both attentions."""
        values = self.encoder(features)
        mean = masked_mean(values, mask)  # (B, D)
        topic_logits, attribute_logits = self.topic_head(mean), self.attribute_head(mean)
        topic = topic_logits.float().softmax(-1)
        likely = attribute_logits.topk(self.num_likely)  # (B, K)
        words = self.embedding(likely.indices + self.attribute_ids[0])  # (B, K, E)
        return TopicMemory(
            self.spatial.prepare(values, mask, topic),
            self.semantic.prepare(words, None, topic),
            functional.logsigmoid(likely.values.float()),
            topic.new_zeros(len(topic), 1) if self.topic_gates is None else self.topic_gates(topic),
            topic_logits,
            attribute_logits,
        )

    def start(self, memory: TopicMemory) -> LSTMState:
        """Begin with what the mean region suggests: (B, H) each."""
        mean = masked_mean(memory.regions.values, memory.regions.mask)
        hidden, cell = torch.tanh(self.start_hidden(mean)), torch.tanh(self.start_cell(mean))
        return LSTMState(hidden.float(), cell.float())

    def read(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Embed words: their part of the gates (…, 4H), and the vectors (…, E) for the deep output."""
        said = self.embedding(tokens)
        return self.word_gates(self.dropout(said)), said

    def advance(self, read: tuple[Tensor, ...], state: LSTMState, memory: TopicMemory) -> Advance:
        """Look at regions and attribute words with the old state, then move the LSTM."""
        weights = masked_softmax(self.spatial.energy(state.hidden, memory.regions), memory.regions.mask)
        context = torch.sigmoid(self.gate(state.hidden)) * weighted_sum(weights, memory.regions.values)
        chosen = (self.semantic.energy(state.hidden, memory.words) + memory.prior).float().softmax(-1)
        attribute = weighted_sum(chosen, memory.words.values)  # (B, E)
        gates = read[0] + memory.topic_gates + self.context_gates(torch.cat([context, attribute], -1))
        state = lstm_update(gates + self.state_gates(state.hidden), state.cell)
        return Advance((state.hidden, context), weights, state)

    def finish(self, outputs: tuple[Tensor, ...], read: tuple[Tensor, ...]) -> Tensor:
        """Compute the deep output's hidden layer: (…, E)."""
        hidden, context = outputs
        return torch.tanh(read[1] + self.deep_hidden(self.dropout(hidden)) + self.deep_context(context))

    def head(self, hidden: Tensor) -> Tensor:
        """Score the words."""
        return self.output(self.dropout(hidden))
