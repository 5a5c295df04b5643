"""Laws of decoding, on models whose distribution is known and on every family."""

import math

import pytest
import torch
from torch import Tensor

from captioning.decoding import greedy, sample
from captioning.decoding.sampling import keep_top
from captioning.errors import InputError
from captioning.models import CaptionModel, Step
from captioning.vocabulary import END, PAD, START
from tests.conftest import DIM, REGIONS, VOCABULARY, batch_of


class Fixed(CaptionModel):
    """Gives the same scores at every step, whatever it is shown; attends to the region of the step's number."""

    def __init__(self, probabilities: list[float]) -> None:
        super().__init__()
        self.vocabulary_size = len(probabilities)
        self.logits = torch.tensor(probabilities).log()
        self.steps = 0

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        return features

    def start(self, memory: Tensor) -> Tensor:
        return torch.zeros(len(memory))

    def step(self, tokens: Tensor, state: Tensor, memory: Tensor) -> Step:
        self.steps += 1
        attention = torch.nn.functional.one_hot(state.long() % REGIONS, REGIONS).float()
        return Step(torch.zeros(len(tokens), 1), attention, state + 1)

    def head(self, hidden: Tensor) -> Tensor:
        return self.logits.expand(*hidden.shape[:-1], -1)


KNOWN = [0.5, 0.2, 0.05, 0.05, 0.1, 0.06, 0.04]  # PAD and START would be likely, were they allowed
ALLOWED = torch.tensor([0.0, 0.0, *KNOWN[2:]]) / sum(KNOWN[2:])
IMAGES = torch.randn(20000, REGIONS, 1)


def test_padding_and_start_are_never_proposed() -> None:
    tokens = sample(Fixed(KNOWN), IMAGES, max_words=1).tokens
    assert not ((tokens == PAD) | (tokens == START)).any()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ALLOWED),
        ({"temperature": 0.5}, ALLOWED**2 / (ALLOWED**2).sum()),
        ({"top_k": 2}, torch.tensor([0, 0, 0, 0, 0.1, 0.06, 0]) / 0.16),
        ({"top_p": 0.5}, torch.tensor([0, 0, 0, 0, 0.1, 0.06, 0]) / 0.16),
        ({"top_p": 0.01}, torch.tensor([0, 0, 0, 0, 1.0, 0, 0])),
    ],
)
def test_sampling_frequencies_match_the_distribution(options: dict, expected: Tensor) -> None:
    tokens = sample(Fixed(KNOWN), IMAGES, max_words=1, **options).tokens[:, 0]
    observed = torch.bincount(tokens, minlength=len(KNOWN)).float()
    wanted = expected * len(IMAGES)
    assert not observed[expected == 0].any()
    chi_square = ((observed - wanted) ** 2 / wanted.clamp(min=1)).sum()
    assert chi_square < 25  # 6 degrees of freedom: one in 3,000


def test_the_seed_drew_noise_where_this_draws_the_distribution() -> None:
    """Flaw S3: softmax(exp(logits)) is nearly uniform over the vocabulary when no word is sure."""
    logits = torch.cat(
        [torch.tensor([1.0]), torch.randn(4999, generator=torch.Generator().manual_seed(0)) - 4]
    )
    share_of_uniform = [
        torch.distributions.Categorical(logits=x).entropy() / math.log(5000) for x in (logits.exp(), logits)
    ]
    assert share_of_uniform[0] > 0.99 and share_of_uniform[1] < 0.97


def test_log_probabilities_are_the_models_own(model: CaptionModel) -> None:
    batch = batch_of([[4]] * 6)
    for decoded in (
        greedy(model, batch.features, max_words=8),
        sample(model, batch.features, max_words=8, top_k=3),
    ):
        inputs = torch.cat([torch.full((6, 1), START), decoded.tokens], 1)[:, :-1]
        scores = model.head(model(batch.features, inputs).hidden)
        scores[..., [PAD, START]] = -torch.inf
        expected = scores.log_softmax(-1).gather(-1, decoded.tokens[..., None]).squeeze(-1)
        expected = expected.masked_fill(decoded.tokens == PAD, 0)
        torch.testing.assert_close(decoded.log_probs, expected, atol=1e-5, rtol=1e-5)


def test_greedy_takes_the_best_word_each_time(model: CaptionModel) -> None:
    batch = batch_of([[4]] * 6)
    decoded = greedy(model, batch.features, max_words=8)
    for position in range(decoded.tokens.shape[1]):
        inputs = torch.cat([torch.full((6, 1), START), decoded.tokens[:, :position]], 1)
        scores = model.head(model(batch.features, inputs).hidden[:, -1])
        scores[:, [PAD, START]] = -torch.inf
        running = decoded.tokens[:, position] != PAD
        assert torch.equal(scores.argmax(-1)[running], decoded.tokens[running, position])


def test_finished_rows_stay_finished() -> None:
    decoded = sample(Fixed(KNOWN), IMAGES[:500], max_words=30)
    ended = (decoded.tokens == END).cumsum(1) - (decoded.tokens == END).long()
    assert (decoded.tokens[ended > 0] == PAD).all() and (decoded.log_probs[ended > 0] == 0).all()
    assert decoded.attention is not None and not decoded.attention[ended > 0].any()


def test_row_t_of_the_attention_belongs_to_word_t() -> None:
    decoded = greedy(Fixed([0, 0, 0, 0, 1.0]), IMAGES[:2], max_words=4)
    assert decoded.attention is not None
    assert decoded.attention.argmax(-1).tolist() == [[0, 1, 2, 3]] * 2


def test_decoding_stops_when_all_rows_ended() -> None:
    model = Fixed([0, 0, 1.0, 0])
    decoded = greedy(model, IMAGES[:8], max_words=50)
    assert model.steps == 1 and decoded.tokens.tolist() == [[END]] * 8


def test_a_caption_is_cut_at_the_limit_without_an_end() -> None:
    assert greedy(Fixed([0, 0, 0, 0, 1.0]), IMAGES[:1], max_words=3).tokens.tolist() == [[4, 4, 4]]


def test_batch_size_changes_nothing(model: CaptionModel) -> None:
    features = torch.randn(5, REGIONS, DIM)
    together = greedy(model, features, max_words=6)
    for row in range(5):
        alone = greedy(model, features[row : row + 1], max_words=6).tokens[0]
        assert torch.equal(together.tokens[row, : len(alone)], alone)


def test_a_generator_decides_the_draw() -> None:
    draws = [
        sample(Fixed(KNOWN), IMAGES[:50], max_words=5, generator=torch.Generator().manual_seed(s)).tokens
        for s in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_sampling_keeps_gradients(model: CaptionModel) -> None:
    sample(model, batch_of([[4]] * 2).features, max_words=4).log_probs.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    scores = torch.randn(2, VOCABULARY)
    assert torch.equal(keep_top(scores, 99, None), scores)


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(InputError, match="use decoding=greedy"):
        sample(Fixed(KNOWN), IMAGES[:1], max_words=1, temperature=0)
