"""Topic-Guided Attention (Zhu, Xue and Yuan, 2018): the predicted topic of the image guides the attention.

    T = softmax(W_2 dropout(ReLU(W_1 mean_i a_i)))                    the topic, predicted from the image
    e_i = w . ReLU(W_a a_i + W_h h_{t-1} + W_T T + b)                 spatial attention
    z_t = beta_t sum_i softmax(e)_i a_i,  beta_t = sigma(w h_{t-1} + b)
    u_k = w' . ReLU(U E[w_k] + W_h' h_{t-1} + W_T' T + b') + log q_k  semantic attention, over attribute words
    s_t = sum_k softmax(u)_k E[w_k]
    h_t, c_t = LSTM([E y_{t-1}; z_t; s_t], h_{t-1}, c_{t-1})
    p(y_t) = softmax(W_o dropout(tanh(E y_{t-1} + W_h dropout(h_t) + W_z z_t)))

The w_k are the K attribute words that are most probable for the image, q_k their predicted probabilities. The
term log q_k is ours: through it the likelihood of the caption trains the prediction too. Topics and
attributes are predicted from the image alone, and `objectives/topic_supervision.py` trains the two heads from
training captions. (The authors' released code takes both from the reference captions even at test, and its
semantic softmax runs over one column.) With a linear score the topic would cancel in the softmax; with the
ReLU it does not. `topic_to` sends the topic elsewhere, to measure what the guidance is worth: as one more
input of the LSTM, or nowhere.

Other departures from that code: features are not batch-normalised, the topic head is two layers on the mean
region, weights are initialised as PyTorch does, with word vectors of a standard deviation of 0.1, and dropout
is also applied to the LSTM's word input.
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
from captioning.models.encoder import Encoder, masked_mean
from captioning.models.recurrent import (
    Advance,
    InitialLSTMState,
    LSTMState,
    RecurrentModel,
    lstm_update,
    orthogonal_gates,
)
from captioning.vocabulary import UNKNOWN


class TopicMemory(NamedTuple):
    """What every word reads again, and what the objective trains.

    regions: (B, R, D) and their keys, the topic's part included.
    words: vectors of the K likely attribute words (B, K, E) and their keys, the topic's part included.
    prior: (B, K) log q of these words.
    topic_gates: the topic's part of the LSTM's gates (B, 4H), or zeros (B, 1).
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
    """Additive attention with ReLU; its keys include the topic if there is a `topic_dim`."""

    def __init__(self, *, value_dim: int, query_dim: int, topic_dim: int | None, attention_dim: int) -> None:
        super().__init__()
        self.key = nn.Linear(value_dim, attention_dim)
        self.topic = None if topic_dim is None else nn.Linear(topic_dim, attention_dim, bias=False)
        self.query = nn.Linear(query_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1)

    def prepare(self, values: Tensor, mask: Tensor | None, topic: Tensor) -> Regions:
        """Compute the keys of values (B, R, ·) for topics (B, topics), once per image."""
        keys = self.key(values)  # (B, R, A)
        return Regions(values, keys if self.topic is None else keys + self.topic(topic)[:, None], mask)

    def energy(self, query: Tensor, regions: Regions) -> Tensor:
        """Score the values for queries (B, H): (B, R)."""
        # In place, because (B, R, A) is the largest tensor of a step.
        return self.score((regions.keys + self.query(query)[:, None]).relu_()).squeeze(-1)  # (B, R)


class TopicGuided(RecurrentModel):
    """LSTM with topic-guided spatial and semantic attention; state: (h, c).

    Args:
        encoder: see `Encoder`; the paper has none.
        vocabulary_size: V, the four special ids included.
        embedding_dim: size of a word vector and of the deep output.
        hidden_dim: H of the LSTM and of the two heads' hidden layer.
        attention_dim: size of both attentions' hidden layers.
        num_topics: of the topic model.
        attribute_ranks: which words are attributes, by their frequency rank: from the first up to, but
            excluding, the second; the authors' Flickr8k variant takes ranks 51 to 150.
        num_likely: K, number of attribute words attended to.
        dropout: probability.
        topic_to: `attention`, `lstm` or `nothing`.

    Raises:
        InputError: the vocabulary has no words of these ranks, or fewer than K; an unknown `topic_to`.
    """

    predicts_topics = True

    def __init__(
        self,
        *,
        encoder: Encoder,
        vocabulary_size: int,
        embedding_dim: int,
        hidden_dim: int,
        attention_dim: int,
        num_topics: int,
        attribute_ranks: Sequence[int],
        num_likely: int,
        dropout: float,
        topic_to: str = "attention",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.vocabulary_size, self.num_likely, region_dim = vocabulary_size, num_likely, encoder.output_dim
        self.attribute_ids = _ids_of_ranks(attribute_ranks, vocabulary_size, num_likely)
        if topic_to not in ("attention", "lstm", "nothing"):
            raise InputError(f"model.topic_to is {topic_to!r}; it must be attention, lstm or nothing")
        attention = partial(
            GuidedAttention,
            query_dim=hidden_dim,
            topic_dim=num_topics if topic_to == "attention" else None,
            attention_dim=attention_dim,
        )
        self.topic_gates = nn.Linear(num_topics, 4 * hidden_dim, bias=False) if topic_to == "lstm" else None
        self.spatial, self.semantic = attention(value_dim=region_dim), attention(value_dim=embedding_dim)
        self.topic_head, self.attribute_head = (
            nn.Sequential(
                nn.Linear(region_dim, hidden_dim), nn.ReLU(), Dropout(dropout), nn.Linear(hidden_dim, size)
            )
            for size in (num_topics, self.attribute_ids[1] - self.attribute_ids[0])
        )
        self.initial_state = InitialLSTMState(input_dim=region_dim, hidden_dim=hidden_dim)
        self.gate = nn.Linear(hidden_dim, 1)
        self.embedding = nn.Embedding(vocabulary_size, embedding_dim)
        self.word_gates = nn.Linear(embedding_dim, 4 * hidden_dim)
        self.context_gates = nn.Linear(region_dim + embedding_dim, 4 * hidden_dim, bias=False)
        self.state_gates = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.deep_hidden = nn.Linear(hidden_dim, embedding_dim)
        self.deep_context = nn.Linear(region_dim, embedding_dim)
        self.output = nn.Linear(embedding_dim, vocabulary_size)
        self.dropout = Dropout(dropout)
        orthogonal_gates(self.state_gates, 4)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def encode(self, features: Tensor, mask: Tensor | None = None) -> TopicMemory:
        """Predict topic and attributes, and compute the keys of both attentions."""
        values = self.encoder(features)  # (B, R, D)
        mean = masked_mean(values, mask)  # (B, D)
        topic_logits, attribute_logits = self.topic_head(mean), self.attribute_head(mean)
        topic = topic_logits.float().softmax(-1)  # (B, topics)
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
        """Compute the first state from the mean region."""
        return self.initial_state(masked_mean(memory.regions.values, memory.regions.mask))

    def embed(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Compute the words' part of the gates (…, 4H), and their vectors (…, E) for the deep output."""
        words = self.embedding(tokens)  # (…, E)
        return self.word_gates(self.dropout(words)), words

    def advance(self, embedded: tuple[Tensor, ...], state: LSTMState, memory: TopicMemory) -> Advance:
        """Attend to regions and attribute words with the old state, then update the LSTM."""
        energy = self.spatial.energy(state.hidden, memory.regions)  # (B, R)
        weights = masked_softmax(energy, memory.regions.mask)  # (B, R)
        context = torch.sigmoid(self.gate(state.hidden)) * weighted_sum(weights, memory.regions.values)
        energy = self.semantic.energy(state.hidden, memory.words)  # (B, K)
        word_weights = (energy + memory.prior).float().softmax(-1)  # (B, K)
        attribute = weighted_sum(word_weights, memory.words.values)  # (B, E)
        gates = embedded[0] + memory.topic_gates + self.context_gates(torch.cat([context, attribute], -1))
        state = lstm_update(gates + self.state_gates(state.hidden), state.cell)
        return Advance((state.hidden, context), weights, state)

    def finish(self, outputs: tuple[Tensor, ...], embedded: tuple[Tensor, ...]) -> Tensor:
        """Compute the hidden layer of the deep output: (…, E)."""
        hidden, context = outputs
        return torch.tanh(embedded[1] + self.deep_hidden(self.dropout(hidden)) + self.deep_context(context))

    def head(self, hidden: Tensor) -> Tensor:
        """Compute logits: (…, E) -> (…, V)."""
        return self.output(self.dropout(hidden))


def _ids_of_ranks(ranks: Sequence[int], vocabulary_size: int, num_likely: int) -> tuple[int, int]:
    """Return the ids of a range of frequency ranks: from the first rank up to, but excluding, the second."""
    first, stop = ranks  # a vocabulary is sorted by frequency, after the special words
    if not (1 <= first < stop <= vocabulary_size - UNKNOWN and num_likely <= stop - first):
        raise InputError(
            f"model.attribute_ranks={list(ranks)} with model.num_likely={num_likely} does not fit "
            f"{vocabulary_size - UNKNOWN - 1} words; ranks start at 1 and must hold num_likely words"
        )
    return UNKNOWN + first, UNKNOWN + stop
