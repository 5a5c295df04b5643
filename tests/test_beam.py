"""Beam search against enumeration, on every family with a small vocabulary."""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from captioning.decoding import (
    Forbidden,
    MinimumLength,
    NoRepeatedNgram,
    average,
    beam_search,
    gnmt,
    greedy,
    total,
)
from captioning.errors import InputError
from captioning.models import CaptionModel
from captioning.vocabulary import END, PAD, START
from tests.conftest import DIM, REGIONS, build
from tests.test_decoding import Fixed

SIZE, LONGEST = 7, 4  # ids 2 END, 3 unknown, 4 5 6 words
WORDS = [3, 4, 5, 6]


@pytest.fixture
def small(family: str) -> CaptionModel:
    model = build(family, vocabulary_size=SIZE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.5)  # sharper than a fresh model, so that captions differ
    return model


@pytest.fixture
def features() -> Tensor:
    return torch.randn(3, REGIONS, DIM, generator=torch.Generator().manual_seed(4))


def every_caption() -> list[tuple[int, ...]]:
    return [(*words, END) for n in range(LONGEST) for words in itertools.product(WORDS, repeat=n)]


def every_cut_caption() -> list[tuple[int, ...]]:
    return list(itertools.product(WORDS, repeat=LONGEST))


def score_captions(model: CaptionModel, features: Tensor, captions: list[tuple[int, ...]]) -> Tensor:
    """Teacher-forced log-probability of each caption for each image: (B, N)."""
    length = max(map(len, captions))
    tokens = torch.tensor([[START, *c, *[PAD] * (length - len(c))] for c in captions])
    rows = []
    for image in features:
        hidden = model(image.expand(len(captions), -1, -1), tokens[:, :-1]).hidden
        logits = model.head(hidden)
        logits[..., [PAD, START]] = -torch.inf
        words = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
        rows.append(words.masked_fill(tokens[:, 1:] == PAD, 0).sum(1))
    return torch.stack(rows)


def no_repeats(caption: tuple[int, ...]) -> bool:
    pairs = list(zip(caption, caption[1:], strict=False))
    return len(set(pairs)) == len(pairs)


@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({}, lambda c: True),
        ({"rules": [NoRepeatedNgram(size=2)]}, no_repeats),
        ({"rules": [NoRepeatedNgram(size=1)]}, lambda c: len(set(c)) == len(c)),
        ({"rules": [Forbidden(ids=[3, 5])]}, lambda c: not {3, 5} & set(c)),
        ({"rules": [MinimumLength(words=2)]}, lambda c: len(c) > 2),
        ({"required": [5]}, lambda c: 5 in c),
        ({"required": [4, 6]}, lambda c: {4, 6} <= set(c)),
        ({"prefix": [6, 3]}, lambda c: c[:2] == (6, 3)),
        ({"prefix": [6], "required": [6, 4]}, lambda c: c[0] == 6 and 4 in c),
    ],
    ids=[
        "plain",
        "bigrams",
        "words",
        "forbidden",
        "minimum",
        "one_required",
        "two_required",
        "prefix",
        "both",
    ],
)
@pytest.mark.parametrize(
    "length_score", [total, average, partial(gnmt, alpha=0.8)], ids=["total", "average", "gnmt"]
)
def test_a_beam_as_wide_as_the_tree_finds_the_enumerated_optimum(
    small: CaptionModel, features: Tensor, options: dict, keep: Callable, length_score: Callable
) -> None:
    captions = [caption for caption in every_caption() if keep(caption)]
    lengths = torch.tensor([len(c) for c in captions])
    log_probs = score_captions(small, features, captions)
    best = length_score(log_probs, lengths).argmax(1)
    found = beam_search(
        small, features, max_words=LONGEST, beam_size=400, length_score=length_score, **options
    )
    for image, index in enumerate(best.tolist()):
        caption = [word for word in found.tokens[image].tolist() if word != PAD]
        assert tuple(caption) == captions[index]
    torch.testing.assert_close(
        found.log_probs.sum(1), log_probs.gather(1, best[:, None]).squeeze(1), atol=1e-4, rtol=1e-4
    )


def test_the_best_ten_are_the_enumerated_best_ten(small: CaptionModel, features: Tensor) -> None:
    captions = every_caption()
    order = score_captions(small, features, captions).topk(10).indices
    found = beam_search(small, features, max_words=LONGEST, beam_size=400, num_best=10)
    hypotheses = [found, *found.alternatives]
    for image in range(len(features)):
        got = [tuple(w for w in h.tokens[image].tolist() if w != PAD) for h in hypotheses]
        assert got == [captions[i] for i in order[image].tolist()]


@pytest.mark.parametrize("length_score", [total, average], ids=["total", "average"])
def test_where_nothing_ends_the_cut_captions_come_in_the_enumerated_order(
    small: CaptionModel, features: Tensor, length_score: Callable
) -> None:
    captions = every_cut_caption()
    log_probs = score_captions(small, features, captions)
    never_ends = Forbidden(ids=[END])
    options = {"beam_size": 400, "num_best": 40, "length_score": length_score, "rules": [never_ends]}
    found = beam_search(small, features, max_words=LONGEST, **options)
    got = torch.stack([h.log_probs.sum(1) for h in (found, *found.alternatives)], 1)
    torch.testing.assert_close(got, log_probs.topk(40).values, atol=1e-4, rtol=1e-4)
    for image in range(len(features)):
        assert tuple(found.tokens[image].tolist()) == captions[log_probs[image].argmax()]


def test_a_finished_hypothesis_never_changes(model: CaptionModel) -> None:
    """A search that may go on for longer returns it as it was, or something better."""
    features = torch.randn(12, REGIONS, DIM)
    earlier, later = (beam_search(model, features, max_words=t, beam_size=3, num_best=3) for t in (3, 8))
    for image in range(12):
        lists = []
        for found in (earlier, later):
            kept = [
                (tuple(h.tokens[image].tolist()), h.log_probs[image].sum().item())
                for h in (found, *found.alternatives)
            ]
            lists.append({tuple(w for w in words if w != PAD): s for words, s in kept if END in words})
        worst = min(lists[1].values(), default=-torch.inf)
        for words, log_prob in lists[0].items():
            assert lists[1].get(words, log_prob) == pytest.approx(log_prob, abs=1e-5)
            assert words in lists[1] or worst >= log_prob - 1e-5


def test_where_there_are_fewer_hypotheses_the_rest_is_empty() -> None:
    model, features = Fixed([0, 0, 0.4, 0.6]), torch.randn(1, REGIONS, 1)
    found = beam_search(model, features, max_words=1, beam_size=5, num_best=5)
    listed = [(h.tokens[0].tolist(), h.log_probs[0].sum().exp().item()) for h in (found, *found.alternatives)]
    assert listed[:2] == [([END], pytest.approx(0.4)), ([3], pytest.approx(0.6))]  # the second is cut
    assert listed[2:] == [([PAD], 0.0)] * 3
    rules = [MinimumLength(words=5), NoRepeatedNgram(size=1)]
    nothing = beam_search(model, features, max_words=6, beam_size=2, rules=rules)
    assert not nothing.tokens.any() and nothing.log_probs.sum().item() == -torch.inf


def test_six_required_words_all_occur(model: CaptionModel) -> None:
    required = [4, 5, 6, 7, 8, 9]
    found = beam_search(model, torch.randn(3, REGIONS, DIM), max_words=9, beam_size=4, required=required)
    for row in found.tokens.tolist():
        assert set(required) <= set(row)


def test_a_beam_of_one_is_greedy(model: CaptionModel) -> None:
    features = torch.randn(20, REGIONS, DIM)
    for length_score in (total, average):
        found = beam_search(model, features, max_words=9, beam_size=1, length_score=length_score)
        expected = greedy(model, features, max_words=9)
        assert torch.equal(found.tokens, expected.tokens)
        torch.testing.assert_close(found.log_probs, expected.log_probs)
        if expected.attention is not None:
            torch.testing.assert_close(found.attention, expected.attention)


def test_a_wider_beam_scores_no_worse_than_greedy_where_greedy_ends(model: CaptionModel) -> None:
    features = torch.randn(40, REGIONS, DIM)
    one, five = (beam_search(model, features, max_words=9, beam_size=k) for k in (1, 5))
    ended = (one.tokens == END).any(1)
    better = five.log_probs.sum(1) >= one.log_probs.sum(1) - 1e-5
    assert better[ended].all()  # with five beams and toy models no greedy caption falls out of the beam


def test_log_probabilities_equal_teacher_forced_scoring(model: CaptionModel) -> None:
    features = torch.randn(6, REGIONS, DIM)
    found = beam_search(model, features, max_words=7, beam_size=4, length_score=average, num_best=3)
    for hypothesis in (found, *found.alternatives):
        inputs = torch.cat([torch.full((6, 1), START), hypothesis.tokens], 1)[:, :-1]
        output = model(features, inputs)
        logits = model.head(output.hidden)
        logits[..., [PAD, START]] = -torch.inf
        expected = logits.log_softmax(-1).gather(-1, hypothesis.tokens[..., None]).squeeze(-1)
        ended = hypothesis.tokens == PAD
        torch.testing.assert_close(hypothesis.log_probs, expected.masked_fill(ended, 0), atol=1e-5, rtol=1e-5)
        if hypothesis.attention is not None:
            torch.testing.assert_close(
                hypothesis.attention, output.attention * ~ended[..., None], atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize(
    "options",
    [
        {"length_score": average},
        {"length_score": partial(gnmt, alpha=0.7)},
        {"groups": 3, "diversity": 0.7, "num_best": 3},
        {"groups": 3, "diversity": 0.7, "num_best": 6, "beam_size": 6, "length_score": average},
        {"required": [5, 7], "rules": [NoRepeatedNgram(size=2)]},
        {"prefix": [6], "rules": [Forbidden(ids=[3])]},
    ],
    ids=["average", "gnmt", "diverse", "diverse_list", "required", "prefix"],
)
def test_batch_order_and_size_change_nothing(model: CaptionModel, options: dict) -> None:
    features = torch.randn(6, REGIONS, DIM)
    search = partial(beam_search, model, **{"max_words": 7, "beam_size": 3, **options})
    together, turned = search(features), search(features.flip(0))
    for one, other in zip((together, *together.alternatives), (turned, *turned.alternatives), strict=True):
        assert torch.equal(one.tokens.flip(0), other.tokens)
    for row in range(6):
        alone = search(features[row : row + 1])
        for one, other in zip((together, *together.alternatives), (alone, *alone.alternatives), strict=True):
            words = other.tokens[0]
            assert torch.equal(one.tokens[row, : len(words)], words)
            assert not one.tokens[row, len(words) :].any()


@pytest.mark.parametrize("counts", [None, [5, 2, 4, 1, 3]])
def test_a_batch_too_large_to_search_at_once_is_searched_in_parts(
    model: CaptionModel, counts: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.randn(5, REGIONS, DIM)
    mask = None if counts is None else torch.arange(REGIONS) < torch.tensor(counts)[:, None]
    options = {"max_words": 6, "beam_size": 3, "num_best": 2, "required": [5]}
    whole = beam_search(model, features, mask, **options)
    monkeypatch.setattr("captioning.decoding.beam.MAX_ROWS", 13)  # two images of six places
    parts = beam_search(model, features, mask, **options)
    for one, other in zip((whole, *whole.alternatives), (parts, *parts.alternatives), strict=True):
        assert torch.equal(one.tokens, other.tokens)
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-5, rtol=1e-5)
        if one.attention is not None:
            torch.testing.assert_close(one.attention, other.attention, atol=1e-5, rtol=1e-5)


def test_every_group_of_a_diverse_search_finishes_its_captions() -> None:
    """The first group ends at once; the words that it leaves to the second need a second step to end."""
    model = Fixed([0, 0, 0.5, 0.3, 0.2])
    found = beam_search(
        model, torch.randn(1, REGIONS, 1), max_words=4, beam_size=2, groups=2, diversity=5.0, num_best=2
    )
    assert [h.tokens[0].tolist() for h in (found, *found.alternatives)] == [[END], [3, END]]


def test_masked_regions_change_nothing(model: CaptionModel) -> None:
    features, mask = torch.randn(3, REGIONS, DIM), torch.arange(REGIONS) < torch.tensor([[5], [2], [3]])
    noisy = features + 50 * ~mask[..., None]
    one, other = (beam_search(model, f, mask, max_words=6, beam_size=3) for f in (features, noisy))
    assert torch.equal(one.tokens, other.tokens)


def test_a_batch_that_ends_at_once_costs_one_step() -> None:
    model = Fixed([0, 0, 0.98, 0.01, 0.01])
    found = beam_search(model, torch.randn(4, REGIONS, 1), max_words=30, beam_size=3)
    assert found.tokens.tolist() == [[END]] * 4 and model.steps == 1


def test_it_stops_when_no_open_caption_can_win() -> None:
    model = Fixed([0, 0, 0.6, 0.2, 0.2])
    beam_search(model, torch.randn(2, REGIONS, 1), max_words=50, beam_size=3)
    assert model.steps == 1  # END alone has 0.6; any longer caption has at most 0.4 before its END


def test_a_caption_that_is_cut_is_returned_for_want_of_a_finished_one() -> None:
    found = beam_search(Fixed([0, 0, 1e-9, 0.5, 0.5]), torch.randn(2, REGIONS, 1), max_words=3, beam_size=2)
    assert found.tokens.shape == (2, 3) and not (found.tokens == END).any()


def test_the_caption_that_meets_most_requirements_comes_first_when_none_meets_all() -> None:
    found = beam_search(
        Fixed([0, 0, 0.2, 0.2, 0.2, 0.2, 0.2]),
        torch.randn(1, REGIONS, 1),
        max_words=4,
        beam_size=3,
        required=[4, 5, 6],
        rules=[lambda tokens, scores: scores.index_fill(-1, torch.tensor([6]), -torch.inf)],
    )
    assert set(found.tokens[0].tolist()) & {4, 5, 6} == {4, 5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"required": [4], "rules": [Forbidden(ids=[4, 5])]}, r"word ids \[4\] are required and forbidden"),
        ({"rules": [MinimumLength(words=5)]}, "no room for a minimum of 5 words, or"),
        ({"prefix": [4] * 6}, "for the 6 of the prefix"),
        ({"prefix": [4, 5], "required": [3, 4, 6, 7]}, "for the 5 of the prefix and the required ones"),
        ({"length_score": None}, "needed are one of total, average and gnmt"),
        ({"diversity": "much"}, "and decoding.diversity 'much'"),
        ({"length_score": partial(gnmt, alpha="big")}, "alpha is big; needed is a number"),
        ({"length_score": partial(gnmt, alpha=math.nan)}, "alpha is nan; needed is a number"),
    ],
)
def test_constraints_that_no_caption_can_meet_are_refused(
    model: CaptionModel, options: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        beam_search(model, torch.randn(1, REGIONS, DIM), **{"max_words": 5, "beam_size": 3, **options})


def test_a_minimum_or_a_prefix_that_just_fits_is_met(model: CaptionModel) -> None:
    features = torch.randn(1, REGIONS, DIM)
    long = beam_search(model, features, max_words=5, beam_size=3, rules=[MinimumLength(words=4)])
    assert (long.tokens[0] != PAD).sum() == 5
    begun = beam_search(model, features, max_words=5, beam_size=3, prefix=[4, 5], required=[6, 4, 7])
    assert {4, 5, 6, 7} <= set(begun.tokens[0].tolist())


def test_length_scores_are_those_of_the_papers() -> None:
    log_prob, words = torch.tensor(-6.0), torch.tensor(7)
    assert total(log_prob, words).item() == -6.0
    assert average(log_prob, words).item() == pytest.approx(-6 / 7)
    assert gnmt(log_prob, words, alpha=0.5).item() == pytest.approx(-6 / math.sqrt(12 / 6))


def test_diverse_groups_choose_other_words() -> None:
    model = Fixed([0, 0, 0.05, 0.05, 0.4, 0.3, 0.2])
    plain, diverse = (
        beam_search(model, torch.randn(1, REGIONS, 1), max_words=3, beam_size=4, num_best=4, groups=groups, diversity=strength, rules=[MinimumLength(words=2)])
        for groups, strength in ((1, 0.0), (4, 5.0))
    )  # fmt: skip
    first_words = [
        {h.tokens[0, 0].item() for h in (found, *found.alternatives)} for found in (plain, diverse)
    ]
    assert len(first_words[1]) == 4 > len(first_words[0])


def test_a_second_group_pays_for_every_beam_of_the_first_that_chose_its_word() -> None:
    """By hand: one word a caption; groups of two beams; a penalty of 0.5 nats a beam."""
    model = Fixed([0, 0, 0, 0.02, 0.4, 0.3, 0.2, 0.08])
    found = beam_search(
        model, torch.randn(1, REGIONS, 1), max_words=1, beam_size=4, num_best=4, groups=2, diversity=0.5
    )
    # The first group takes 4 and 5; to the second they are worth 0.4 / e^0.5 = 0.24, 0.3 / e^0.5 = 0.18, so that it
    # takes 4 and 6 (0.2). Of 4, which both have, one is returned; the best of each group comes first.
    listed = [(h.tokens[0, 0].item(), h.log_probs[0, 0].exp().item()) for h in (found, *found.alternatives)]
    assert listed == [(4, pytest.approx(0.4)), (5, pytest.approx(0.3)), (6, pytest.approx(0.2)), (PAD, 0.0)]


def test_the_best_of_each_group_come_before_the_second_best_of_any() -> None:
    model = Fixed([0, 0, 0, 0.02, 0.4, 0.3, 0.2, 0.08])
    found = beam_search(
        model, torch.randn(1, REGIONS, 1), max_words=1, beam_size=4, num_best=2, groups=2, diversity=3.0
    )
    assert [h.tokens[0, 0].item() for h in (found, *found.alternatives)] == [
        4,
        6,
    ]  # 5 is the first group's second


def test_one_group_without_penalty_is_plain_beam_search(model: CaptionModel) -> None:
    features = torch.randn(5, REGIONS, DIM)
    plain = beam_search(model, features, max_words=6, beam_size=2)
    grouped = beam_search(model, features, max_words=6, beam_size=4, groups=2, diversity=0.0)
    assert torch.equal(plain.tokens, grouped.tokens)


def test_contradictory_options_are_refused() -> None:
    model, features = Fixed([0, 0, 0.5, 0.2, 0.3]), torch.randn(1, REGIONS, 1)
    for options in ({"beam_size": 3, "groups": 2}, {"beam_size": 2, "num_best": 3}):
        with pytest.raises(InputError, match="must be a multiple of groups"):
            beam_search(model, features, max_words=3, **options)
    for name in ("beam_size", "num_best", "groups", "max_words"):
        for wrong in (0, "two", 1.5):
            with pytest.raises(InputError, match=f"decoding.{name} is .*; needed is a whole number"):
                beam_search(model, features, **{"max_words": 3, "beam_size": 4, name: wrong})
    for word in (PAD, END, 99):
        with pytest.raises(InputError, match="a prefix has words only"):
            beam_search(model, features, max_words=3, beam_size=2, prefix=[word])
    with pytest.raises(InputError, match="99 can't be forbidden"):
        beam_search(model, features, max_words=3, beam_size=2, rules=[Forbidden(ids=[99])])
    with pytest.raises(InputError, match="alpha is -1"):
        beam_search(model, features, max_words=3, beam_size=2, length_score=partial(gnmt, alpha=-1))
    with pytest.raises(InputError, match="can't be required"):
        beam_search(model, features, max_words=3, beam_size=2, required=[END])
    with pytest.raises(InputError, match="at most 6 different words"):
        beam_search(model, features, max_words=3, beam_size=2, required=[4, 4])
    with pytest.raises(InputError, match="at least 1 word"):
        NoRepeatedNgram(size=0)
    with pytest.raises(InputError, match="word ids start at 0, found"):
        Forbidden(ids=[4, -1])
