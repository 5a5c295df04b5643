"""Laws of decoding, on models whose distribution is known and on every family."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from captioning.decoding import (
    Decoded,
    Ensemble,
    Forbidden,
    MinimumLength,
    NoRepeatedNgram,
    alternatives,
    beam_search,
    greedy,
    sample,
    words_to_ids,
)
from captioning.decoding.sampling import keep_top
from captioning.errors import InputError
from captioning.models import CaptionModel, Step
from captioning.tokenizers import Characters
from captioning.vocabulary import END, PAD, SPECIAL_WORDS, START, UNKNOWN, Vocabulary
from tests.conftest import DIM, FAMILIES, REGIONS, VOCABULARY, batch_of, build


class Fixed(CaptionModel):
    """Gives the same scores at every step, whatever its input; step t attends to region t."""

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


KNOWN = [0.5, 0.2, 0.05, 0.05, 0.1, 0.06, 0.04]  # PAD and START would be the most likely
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
        # entropy 1.56 nats; the surprises of 0.05, 0.05, 0.1, 0.06, 0.04 of 0.3 are 1.79, 1.79, 1.10, 1.61, 2.01
        ({"typical_p": 0.4}, torch.tensor([0, 0, 0.05, 0.05, 0, 0.06, 0]) / 0.16),
    ],
)
def test_sampling_frequencies_match_the_distribution(options: dict, expected: Tensor) -> None:
    tokens = sample(Fixed(KNOWN), IMAGES, max_words=1, **options).tokens[:, 0]
    observed = torch.bincount(tokens, minlength=len(KNOWN)).float()
    wanted = expected * len(IMAGES)
    assert not observed[expected == 0].any()
    chi_square = ((observed - wanted) ** 2 / wanted.clamp(min=1)).sum()
    assert chi_square < 25  # 6 degrees of freedom: one in 3,000


def test_the_post_drew_noise_where_this_draws_from_the_distribution() -> None:
    """Flaw S3: softmax(exp(logits)) is nearly uniform over the vocabulary when no word is likely."""
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
        output = model(batch.features, inputs)
        torch.testing.assert_close(decoded.attention, output.attention, atol=1e-5, rtol=1e-5)
        scores = model.head(output.hidden)
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


def test_captions_that_have_ended_leave_the_batch() -> None:
    sizes = []

    class Spy(Fixed):
        def step(self, tokens: Tensor, state: Tensor, memory: Tensor) -> Step:
            sizes.append(len(tokens))
            return super().step(tokens, state, memory)

    decoded = sample(Spy([0, 0, 0.5, 0, 0.5]), IMAGES[:1000], max_words=5)
    running = [1000, *((decoded.tokens != END) & (decoded.tokens != PAD)).sum(0).tolist()]
    assert sizes == running[:-1]  # half of them end at every step


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


def test_a_seed_decides_the_draw() -> None:
    draws = [sample(Fixed(KNOWN), IMAGES[:50], max_words=5, seed=seed).tokens for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_sampling_keeps_gradients(model: CaptionModel) -> None:
    sample(model, batch_of([[4]] * 2).features, max_words=4).log_probs.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_top_k_beyond_the_vocabulary_keeps_all() -> None:
    scores = torch.randn(2, VOCABULARY)
    assert torch.equal(keep_top(scores, 99, None), scores)


def test_several_samples_an_image_are_independent_draws_for_that_image(model: CaptionModel) -> None:
    features = torch.randn(3, REGIONS, DIM)
    drawn = sample(model, features, max_words=5, num_samples=4)
    assert (
        len(drawn.alternatives) == 3
        and len({tuple(map(tuple, d.tokens.tolist())) for d in (drawn, *drawn.alternatives)}) > 1
    )
    for one in (drawn, *drawn.alternatives):
        inputs = torch.cat([torch.full((3, 1), START), one.tokens], 1)[:, :-1]
        scores = model.head(model(features, inputs).hidden)
        scores[..., [PAD, START]] = -torch.inf
        expected = scores.log_softmax(-1).gather(-1, one.tokens[..., None]).squeeze(-1)
        torch.testing.assert_close(
            one.log_probs, expected.masked_fill(one.tokens == PAD, 0), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize(
    "wrong",
    [{"top_p": 0}, {"top_p": 1.5}, {"typical_p": 0}, {"top_k": 0}, {"num_samples": 0}, {"max_words": 0}],
    ids=str,
)
def test_options_that_leave_no_word_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"decoding.{next(iter(wrong))} is"):
        sample(Fixed([0, 0, 0.5, 0.5]), torch.randn(1, REGIONS, 1), **{"max_words": 3, **wrong})


def test_a_temperature_of_zero_is_refused() -> None:
    with pytest.raises(InputError, match="use decoding=greedy"):
        sample(Fixed(KNOWN), IMAGES[:1], max_words=1, temperature=0)


def test_an_ensemble_of_all_families_averages_probabilities() -> None:
    models = [build(family) for family in FAMILIES]
    features = torch.randn(4, REGIONS, DIM)
    ensemble = Ensemble(models).eval()
    memory = ensemble.encode(features)
    words = torch.full((4,), START)
    mean = ensemble.head(ensemble.step(words, ensemble.start(memory), memory).hidden).exp()
    each = []
    for model in models:
        memory = model.encode(features)
        each.append(model.head(model.step(words, model.start(memory), memory).hidden).softmax(-1))
    torch.testing.assert_close(mean, torch.stack(each).mean(0))
    assert beam_search(ensemble, features, max_words=6, beam_size=3).tokens.shape[0] == 4


def test_an_ensemble_of_twins_is_the_twin(model: CaptionModel) -> None:
    features = torch.randn(5, REGIONS, DIM)
    alone, twins = (greedy(m, features, max_words=6) for m in (model, Ensemble([model, model])))
    assert torch.equal(alone.tokens, twins.tokens)
    torch.testing.assert_close(alone.log_probs, twins.log_probs, atol=1e-5, rtol=1e-5)


def test_an_ensemble_needs_one_vocabulary() -> None:
    with pytest.raises(InputError, match="needs models of one vocabulary"):
        Ensemble([build("gru_attention"), build("gru_attention", vocabulary_size=20)])


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf, "hot"])
def test_a_temperature_is_a_number_above_0(model: CaptionModel, temperature: object) -> None:
    with pytest.raises(InputError, match="decoding.temperature is .*; it must be a number above 0"):
        sample(model, torch.randn(1, REGIONS, DIM), max_words=3, temperature=temperature)


WORDS = Vocabulary([*SPECIAL_WORDS, "a", "dog", "runs"])


def test_words_become_ids_at_any_depth_and_ids_stay() -> None:
    options = {
        "max_words": 20,
        "required": ["Dog"],
        "prefix": "a dog",
        "rules": [{"ids": ["<unk>", "runs", 2]}, {"words": 8}],
        "length_score": {"alpha": 0.7},
    }
    converted = words_to_ids(options, WORDS)
    assert (converted["required"], converted["prefix"]) == ([5], [4, 5])
    assert converted["rules"] == [{"ids": [UNKNOWN, 6, 2]}, {"words": 8}]
    assert converted["max_words"] == 20 and converted["length_score"] == {"alpha": 0.7}
    assert options["prefix"] == "a dog"  # the given options are not changed
    assert words_to_ids({"required": None}, WORDS) == {"required": []}


def test_unknown_words_and_what_is_no_list_of_words_are_refused() -> None:
    with pytest.raises(InputError, match="the model's 7 words do not include 'giraffe'"):
        words_to_ids({"required": ["giraffe"]}, WORDS)
    with pytest.raises(InputError, match=r"decoding.prefix is 7; needed is a list of words"):
        words_to_ids({"prefix": 7}, WORDS)
    with pytest.raises(InputError, match=r"decoding.ids is \[\['a'\]\]; needed is a list of words"):
        words_to_ids({"rules": [{"ids": [["a"]]}]}, WORDS)


def test_a_prefix_may_be_of_several_tokens_but_a_required_word_is_one() -> None:
    chinese = Vocabulary.build(["一只狗在跑"], size=20, tokenizer=Characters())
    ids = chinese.encode("一只狗")[1:-1]
    assert len(ids) == 3 and words_to_ids({"prefix": "一只狗"}, chinese) == {"prefix": ids}
    assert words_to_ids({"required": ["狗"]}, chinese) == {"required": ids[-1:]}
    with pytest.raises(
        InputError, match="required has '只狗', for this model 2 characters: 只 狗; needed is"
    ):
        words_to_ids({"required": ["只狗"]}, chinese)
    with pytest.raises(InputError, match="do not include '猫'"):
        words_to_ids({"prefix": ["一只猫"]}, chinese)


def test_alternatives_are_texts_with_log_probabilities_and_leave_out_empty_places() -> None:
    first, second, empty = (
        Decoded(torch.tensor([words]), torch.tensor([log_probs]), None)
        for words, log_probs in (
            ([4, END], [-1.0, 0.0]),
            ([5, END], [-1.5, -0.5]),
            ([PAD, PAD], [-math.inf, 0]),
        )
    )
    decoded = first._replace(alternatives=(second, empty))
    assert alternatives(decoded, WORDS, 0) == (("dog", -2.0),)
    assert alternatives(first, WORDS, 0) == ()


def test_an_ensemble_keeps_nothing_between_steps() -> None:
    """Hidden vectors of two ensembles may be scored in any order."""
    models = [build("gru_attention"), build("transformer")]
    features, words = torch.randn(2, REGIONS, DIM), torch.full((2,), START)
    ensemble = Ensemble(models).eval()
    memory = ensemble.encode(features)
    first = ensemble.step(words, ensemble.start(memory), memory)
    expected = ensemble.head(first.hidden)
    ensemble.step(words + 3, first.state, memory)
    assert torch.equal(ensemble.head(first.hidden), expected)
    assert expected.exp().sum(-1).tolist() == pytest.approx([1, 1], abs=1e-5)


LIKELY_UNKNOWN = [0.0, 0.0, 0.1, 0.6, 0.2, 0.1]


def test_what_a_rule_forbids_is_neither_chosen_nor_drawn_and_log_probabilities_stay_the_models() -> None:
    rules = [Forbidden(ids=[UNKNOWN])]
    assert greedy(Fixed(LIKELY_UNKNOWN), IMAGES[:1], max_words=1).tokens.tolist() == [[UNKNOWN]]
    chosen = greedy(Fixed(LIKELY_UNKNOWN), IMAGES[:1], max_words=1, rules=rules)
    assert chosen.tokens.tolist() == [[4]] and chosen.log_probs.exp().item() == pytest.approx(0.2)
    drawn = sample(Fixed(LIKELY_UNKNOWN), IMAGES[:2000], max_words=1, rules=rules, num_samples=2)
    shares = torch.bincount(drawn.tokens[:, 0], minlength=6) / 2000
    torch.testing.assert_close(shares, torch.tensor([0, 0, 0.25, 0, 0.5, 0.25]), atol=0.05, rtol=0)
    assert drawn.log_probs.exp().amax().item() == pytest.approx(0.2)


def test_a_rule_sees_the_words_before() -> None:
    decoded = greedy(
        Fixed([0, 0, 0.1, 0, 0.5, 0.4]), IMAGES[:2], max_words=9, rules=[NoRepeatedNgram(size=1)]
    )
    assert decoded.tokens.tolist() == [[4, 5, END]] * 2


def test_a_caption_ends_where_the_rules_leave_no_word() -> None:
    rules = [MinimumLength(words=3), NoRepeatedNgram(size=1)]
    for decode in (greedy, sample):
        assert (
            decode(Fixed([0, 0, 0.5, 0, 0.5]), IMAGES[:2], max_words=9, rules=rules).tokens.tolist()
            == [[4, END]] * 2
        )


@pytest.mark.parametrize("decode", [greedy, sample])
def test_a_minimum_length_needs_room(decode: Callable[..., Decoded]) -> None:
    with pytest.raises(InputError, match="decoding.max_words=3, the end counted, has no room"):
        decode(Fixed(KNOWN), IMAGES[:1], max_words=3, rules=[MinimumLength(words=3)])
