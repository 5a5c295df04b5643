"""The flaws of the blog post, each by itself."""

from collections.abc import Callable

import pytest
import torch

from captioning.data import Batch
from captioning.decoding import argmax_words, decode_as_posted, exp_multinomial, greedy
from captioning.errors import InputError
from captioning.models import CarriedState, FeatureProjection, GRUAttention, ResetState
from captioning.objectives import CrossEntropy, Objective, ShiftedTargets, Terms
from captioning.vocabulary import END, PAD, START
from tests.conftest import batch_of, build
from tests.test_decoding import Fixed


def test_a_stateless_gru_knows_earlier_words_through_attention_alone() -> None:
    """S1: with one region there is nothing to attend to, so all words but the last are forgotten."""
    for recurrence, forgets in ((ResetState(), True), (CarriedState(), False)):
        model = build("gru_attention", recurrence=recurrence)
        hidden = []
        for words in ([4, 5, 6, 9], [6, 5, 4, 9]):
            batch = batch_of([words])
            hidden.append(model(batch.features[:, :1], batch.tokens[:, :-1]).hidden[:, -1])
        assert torch.equal(*hidden) == forgets


def test_the_stateless_gru_has_the_posts_parameters_too() -> None:
    model = GRUAttention(
        encoder=FeatureProjection(feature_dim=2048, output_dim=256, dropout=0.0), vocabulary_size=5000,
        attention_dim=512, embedding_dim=256, hidden_dim=512, dropout=0.0, activation=torch.nn.Identity(),
        recurrence=ResetState(),
    )  # fmt: skip
    assert sum(parameter.numel() for parameter in model.parameters()) == 6_602_889


def test_shifted_targets_begin_with_start_and_lose_the_end_of_the_longest() -> None:
    """S2."""
    batches: list[torch.Tensor] = []

    class Spy(Objective):
        def __call__(self, model: object, batch: Batch) -> Terms:
            batches.append(batch.tokens)
            return Terms(torch.zeros(()), torch.zeros(()), {})

    ShiftedTargets(max_words=3, cross_entropy=Spy())(build("gru_attention"), batch_of([[4, 5, 6], [7]]))
    assert batches[0].tolist() == [[START, START, 4, 5, 6], [START, START, 7, END, PAD]]


def test_shifted_targets_have_a_target_more_a_caption(ragged: Batch) -> None:
    model = build("gru_attention")
    shifted = ShiftedTargets(max_words=20, cross_entropy=CrossEntropy())(model, ragged)
    assert shifted.num_words == CrossEntropy()(model, ragged).num_words + len(ragged.tokens)


@pytest.mark.slow
def test_exp_multinomial_is_noise_where_the_model_is_unsure() -> None:
    """S3, as simulated in the literature: the best of 5,000 words, at logit 1, is drawn 2 times in 1,000."""
    logits = torch.full((20_000, 5000), -4.0)
    logits[:, 7] = 1.0
    assert (exp_multinomial(logits) == 7).float().mean().item() < 0.01  # softmax(logits) gives it 2.9 %
    logits[:, 7] = 4.0
    assert (exp_multinomial(logits[:100]) == 7).all()


def test_where_start_is_improbable_it_is_greedy_decoding(ragged: Batch) -> None:
    for name in ("gru_attention", "mean_pooled"):
        model = build(name)
        with torch.no_grad():
            list(model.output.modules())[-1].bias[START] = -1e4
        ours = decode_as_posted(model, ragged.features, ragged.mask, max_words=6, draw=argmax_words)
        right = greedy(model, ragged.features, ragged.mask, max_words=6)
        width = right.tokens.shape[1]
        assert torch.equal(ours.tokens[:, :width], right.tokens)
        torch.testing.assert_close(ours.log_probs[:, :width], right.log_probs, atol=1e-4, rtol=1e-4)


def test_a_start_that_is_chosen_is_an_input_but_no_word_of_the_caption() -> None:
    model = build("gru_attention")
    batch = batch_of([[4], [5]])
    choices = iter([[START, 5], [6, 7], [END, END]])

    def draw(logits: torch.Tensor) -> torch.Tensor:
        return torch.tensor(next(choices))

    decoded = decode_as_posted(model, batch.features, None, max_words=4, draw=draw)
    assert decoded.tokens.tolist() == [[6, END, PAD], [5, 7, END]]
    memory = model.encode(batch.features)
    first = model.step(torch.tensor([START, START]), model.start(memory), memory)
    second = model.step(torch.tensor([START, 5]), first.state, memory)
    torch.testing.assert_close(decoded.attention[0, 0], second.attention[0])
    torch.testing.assert_close(decoded.attention[1, 0], first.attention[1])
    assert not decoded.attention[0, 2].any() and decoded.log_probs[0, 2] == 0


def test_it_needs_a_limit_of_words() -> None:
    with pytest.raises(InputError, match="decoding.max_words is None; needed is a whole number"):
        decode_as_posted(build("gru_attention"), batch_of([[4]]).features, max_words=None, draw=argmax_words)


@pytest.mark.parametrize("draw", [argmax_words, exp_multinomial])
def test_it_stops_when_all_captions_ended(draw: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Sure(Fixed):
        def head(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().head(hidden) + 9.0  # exp_multinomial is greedy where a logit is large

    sure = Sure([0.001, 0.001, 0.996, 0.001, 0.001])
    decoded = decode_as_posted(sure, torch.zeros(3, 1, 1), max_words=9, draw=draw)
    assert decoded.tokens.tolist() == [[END]] * 3


def test_noise_never_draws_padding_and_log_probabilities_stay_finite() -> None:
    model = build("gru_attention")
    features = batch_of([[4]] * 60).features
    decoded = decode_as_posted(model, features, None, max_words=8, draw=exp_multinomial)
    assert decoded.log_probs.isfinite().all()
    for row in decoded.tokens.tolist():
        assert PAD not in row[: row.index(END) if END in row else len([w for w in row if w != PAD])]
    logits = torch.zeros(4000, 11)
    logits[:, PAD] = -torch.inf
    assert not (exp_multinomial(logits) == PAD).any()
