"""Beam search against enumeration, on every family with a small vocabulary."""

import itertools
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
    ended = [(*words, END) for n in range(LONGEST) for words in itertools.product(WORDS, repeat=n)]
    return ended


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
    hypotheses = [found, *found.others]
    for image in range(len(features)):
        got = [tuple(w for w in h.tokens[image].tolist() if w != PAD) for h in hypotheses]
        assert got == [captions[i] for i in order[image].tolist()]


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
    for hypothesis in (found, *found.others):
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


def test_batch_order_and_size_change_nothing(model: CaptionModel) -> None:
    features = torch.randn(6, REGIONS, DIM)
    search = partial(beam_search, model, max_words=7, beam_size=3, length_score=average)
    together = search(features)
    turned = search(features.flip(0))
    assert torch.equal(together.tokens.flip(0), turned.tokens)
    for row in range(6):
        alone = search(features[row : row + 1]).tokens[0]
        assert (
            torch.equal(together.tokens[row, : len(alone)], alone)
            and not together.tokens[row, len(alone) :].any()
        )


def test_masked_regions_are_never_looked_at(model: CaptionModel) -> None:
    features, mask = torch.randn(3, REGIONS, DIM), torch.arange(REGIONS) < torch.tensor([[5], [2], [3]])
    noisy = features + 50 * ~mask[..., None]
    one, other = (beam_search(model, f, mask, max_words=6, beam_size=3) for f in (features, noisy))
    assert torch.equal(one.tokens, other.tokens)


class Counting(Fixed):
    """Counts the steps of a model that always gives the same scores."""


def test_a_batch_that_ends_at_once_costs_one_step() -> None:
    model = Fixed([0, 0, 0.98, 0.01, 0.01])
    found = beam_search(model, torch.randn(4, REGIONS, 1), max_words=30, beam_size=3)
    assert found.tokens.tolist() == [[END]] * 4 and model.steps <= 2


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
        max_words=2,
        beam_size=3,
        required=[4, 5, 6],
    )
    assert len(set(found.tokens[0].tolist()) & {4, 5, 6}) == 2


def test_diverse_groups_choose_other_words() -> None:
    model = Fixed([0, 0, 0.05, 0.05, 0.4, 0.3, 0.2])
    plain, diverse = (
        beam_search(model, torch.randn(1, REGIONS, 1), max_words=3, beam_size=4, num_best=4, groups=groups, diversity=strength, rules=[MinimumLength(words=2)])
        for groups, strength in ((1, 0.0), (4, 5.0))
    )  # fmt: skip
    first_words = [{h.tokens[0, 0].item() for h in (found, *found.others)} for found in (plain, diverse)]
    assert len(first_words[1]) == 4 > len(first_words[0])


def test_one_group_without_penalty_is_plain_beam_search(model: CaptionModel) -> None:
    features = torch.randn(5, REGIONS, DIM)
    plain = beam_search(model, features, max_words=6, beam_size=2)
    grouped = beam_search(model, features, max_words=6, beam_size=4, groups=2, diversity=0.0)
    assert torch.equal(plain.tokens, grouped.tokens)


def test_contradictory_options_are_refused() -> None:
    model, features = Fixed([0, 0, 0.5, 0.2, 0.3]), torch.randn(1, REGIONS, 1)
    for options in ({"beam_size": 0}, {"beam_size": 3, "groups": 2}, {"beam_size": 2, "num_best": 3}):
        with pytest.raises(InputError, match="must be at least 1, a multiple of groups"):
            beam_search(model, features, max_words=3, **options)
    with pytest.raises(InputError, match="can't be required"):
        beam_search(model, features, max_words=3, beam_size=2, required=[END])
    with pytest.raises(InputError, match="at most 6 different words"):
        beam_search(model, features, max_words=3, beam_size=2, required=[4, 4])
    with pytest.raises(InputError, match="at least 1 word"):
        NoRepeatedNgram(size=0)
