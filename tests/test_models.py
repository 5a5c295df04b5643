"""Laws for all families; a new family adds one line to conftest.FAMILIES."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from captioning.data import Batch
from captioning.decoding import greedy
from captioning.errors import InputError
from captioning.models import (
    CaptionModel,
    CarriedState,
    FeatureProjection,
    GRUAttention,
    Output,
    RawFeatures,
    pick,
    real_steps,
)
from captioning.models.attention import ROWS_AT_ONCE, AdditiveAttention
from captioning.models.encoder import masked_mean
from captioning.models.recurrent import lstm_update, sort_by_length
from captioning.objectives import CrossEntropy
from captioning.vocabulary import PAD, START
from tests.conftest import DIM, FAMILIES, OBJECTIVES, REGIONS, VOCABULARY, WITHOUT_ATTENTION, batch_of, build


def step_by_step(model: CaptionModel, batch: Batch) -> Output:
    """The reference: the loop over `step` of the base class."""
    memory = model.encode(batch.features, batch.mask)
    return CaptionModel.unroll(model, memory, batch.tokens[:, :-1])


def loss_and_gradients(family: str, batch: Batch) -> list[Tensor]:
    model = build(family)
    loss = CrossEntropy()(model, batch).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


def test_teacher_forcing_equals_step_by_step(model: CaptionModel, ragged: Batch) -> None:
    fast = model(ragged.features, ragged.tokens[:, :-1], ragged.mask)
    slow = step_by_step(model, ragged)
    real = real_steps(ragged.tokens[:, :-1])
    torch.testing.assert_close(fast.hidden[real], slow.hidden[real], atol=1e-5, rtol=1e-5)
    if slow.attention is not None:
        torch.testing.assert_close(fast.attention, slow.attention, atol=1e-5, rtol=1e-5)
    assert fast.extras.keys() == slow.extras.keys()
    for name, values in slow.extras.items():
        torch.testing.assert_close(fast.extras[name][real], values[real], atol=1e-5, rtol=1e-5)


def test_loss_and_every_gradient_equal_step_by_step(family: str, ragged: Batch) -> None:
    gradients = []
    for unroll in (None, CaptionModel.unroll):
        model = build(family)
        if unroll is not None:
            model.unroll = unroll.__get__(model)  # type: ignore[method-assign]
        loss = CrossEntropy()(model, ragged).loss
        loss.backward()
        gradients.append(
            {"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}
        )
    fast, slow = gradients
    assert fast.keys() == slow.keys()
    for name in slow:
        torch.testing.assert_close(
            fast[name], slow[name], atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_captions_that_share_an_image_equal_captions_of_copies(family: str, ragged: Batch) -> None:
    rows = torch.tensor([2, 0, 2, 1])
    assert ragged.mask is not None
    shared = ragged._replace(image_rows=rows)
    copies = ragged._replace(features=ragged.features[rows], mask=ragged.mask[rows])
    for one, other in zip(
        loss_and_gradients(family, shared), loss_and_gradients(family, copies), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_features_of_fewer_images_than_captions_are_refused(model: CaptionModel, ragged: Batch) -> None:
    with pytest.raises(InputError, match=r"features of 2 images came with 4 captions; .* teacher_force"):
        model(ragged.features[:2], ragged.tokens[:, :-1])


def test_padded_words_change_neither_loss_nor_gradients(family: str, ragged: Batch) -> None:
    longer = ragged._replace(tokens=functional.pad(ragged.tokens, (0, 3), value=PAD))
    for one, other in zip(
        loss_and_gradients(family, ragged), loss_and_gradients(family, longer), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_padded_regions_change_nothing(model: CaptionModel, ragged: Batch) -> None:
    noisy = ragged.features + 100 * torch.randn_like(ragged.features) * ~ragged.mask[..., None]
    one = model(ragged.features, ragged.tokens[:, :-1], ragged.mask)
    other = model(noisy, ragged.tokens[:, :-1], ragged.mask)
    torch.testing.assert_close(one.hidden, other.hidden)
    wider = (functional.pad(ragged.features, (0, 0, 0, 3), value=7.0), functional.pad(ragged.mask, (0, 3)))
    gradients = []
    for features, mask in ((ragged.features, ragged.mask), wider):
        model.zero_grad()
        CrossEntropy()(model, ragged._replace(features=features, mask=mask)).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for narrow, wide in zip(*gradients, strict=True):
        torch.testing.assert_close(narrow, wide)


def test_batch_order_is_irrelevant(model: CaptionModel, ragged: Batch) -> None:
    order = torch.tensor([2, 0, 3, 1])
    straight = model(ragged.features, ragged.tokens[:, :-1], ragged.mask)
    permuted = model(ragged.features[order], ragged.tokens[order, :-1], ragged.mask[order])
    torch.testing.assert_close(straight.hidden[order], permuted.hidden)


@pytest.mark.parametrize("with_attention", sorted(FAMILIES.keys() - WITHOUT_ATTENTION))
def test_attention_sums_to_one_over_real_regions(with_attention: str, ragged: Batch) -> None:
    attention = build(with_attention)(ragged.features, ragged.tokens[:, :-1], ragged.mask).attention
    assert attention is not None
    real = real_steps(ragged.tokens[:, :-1])
    torch.testing.assert_close(attention.sum(-1), real.float())
    assert not attention[~ragged.mask[:, None].expand_as(attention)].any()


def test_gradients_reach_every_parameter(family: str, ragged: Batch) -> None:
    model = build(family)
    CrossEntropy()(model, ragged).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # The bias of the scores shifts all energies equally, and the softmax removes it.
    assert all(name.endswith("score.bias") for name in without)


def test_the_initial_loss_is_about_the_logarithm_of_the_vocabulary(family: str) -> None:
    words = torch.Generator().manual_seed(3)
    captions = [torch.randint(4, 500, (6,), generator=words).tolist() for _ in range(16)]
    loss = CrossEntropy()(build(family, vocabulary_size=500), batch_of(captions)).loss
    assert abs(loss.item() - math.log(500)) < 0.35


def test_with_the_output_bias_initialised_the_loss_starts_at_the_entropy_of_the_words(family: str) -> None:
    generator = torch.Generator().manual_seed(3)
    zipf = 1000 / torch.arange(1, 47).float()
    words = torch.multinomial(zipf, 6 * 64, replacement=True, generator=generator) + 4
    batch, model = batch_of(words.view(64, 6).tolist()), build(family, vocabulary_size=50)
    counts = torch.bincount(batch.tokens[:, 1:].flatten(), minlength=50)
    model.init_output_bias(counts)
    shares = counts[counts > 0] / counts.sum()
    entropy = -(shares * shares.log()).sum().item()
    assert entropy < math.log(50) - 0.9
    assert CrossEntropy()(model, batch).loss.item() == pytest.approx(entropy, abs=0.4)


def test_the_output_bias_holds_the_log_frequencies_of_the_counts() -> None:
    model = gru_at_post_sizes()
    counts = torch.zeros(5000).index_fill(0, torch.tensor([7]), 99.0)
    model.init_output_bias(counts)
    probabilities = model.output[-1].bias.softmax(0)
    assert probabilities[7].item() == pytest.approx(100 / 5099)
    assert probabilities[8].item() == pytest.approx(1 / 5099)


def test_the_next_word_depends_on_all_words_before(model: CaptionModel) -> None:
    """Same image, same last word, other words before: a decoder that loses its state fails."""
    one, other = (batch_of([words]) for words in ([4, 5, 6, 9], [6, 5, 4, 9]))
    # With one region, because attention to several depends on the word before last in any case.
    hidden = [model(b.features[:, :1], b.tokens[:, :-1]).hidden[:, -1] for b in (one, other)]
    assert (hidden[0] - hidden[1]).abs().max() > 1e-4


@pytest.mark.slow
def test_every_family_memorises_eight_captions(family: str) -> None:
    words = torch.Generator().manual_seed(5)
    batch = batch_of([torch.randint(4, VOCABULARY, (5,), generator=words).tolist() for _ in range(8)])
    model = build(family).train()
    objective = OBJECTIVES.get(family, CrossEntropy)()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(250):
        optimizer.zero_grad()
        terms = objective(model, batch)
        terms.loss.backward()
        optimizer.step()
    assert CrossEntropy()(model.eval(), batch).loss.item() < 0.05
    captions = greedy(model.eval(), batch.features, None, max_words=8).tokens
    assert torch.equal(captions, batch.tokens[:, 1:])


def test_float16_features_are_accepted(model: CaptionModel, ragged: Batch) -> None:
    half = ragged.features.half()
    one = model(half, ragged.tokens[:, :-1], ragged.mask).hidden
    other = model(half.float(), ragged.tokens[:, :-1], ragged.mask).hidden
    torch.testing.assert_close(one, other)


def test_bfloat16_autocast_stays_close(model: CaptionModel, ragged: Batch) -> None:
    for given in (ragged, ragged._replace(mask=None)):  # grids have no mask
        exact = model(given.features, given.tokens[:, :-1], given.mask).hidden
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(given.features, given.tokens[:, :-1], given.mask).hidden
        torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


def test_weights_survive_a_round_trip(family: str, ragged: Batch) -> None:
    one, other = build(family), FAMILIES[family](vocabulary_size=VOCABULARY).eval()
    other.load_state_dict(one.state_dict())
    tokens = ragged.tokens[:, :-1]
    assert torch.equal(
        one(ragged.features, tokens, ragged.mask).hidden, other(ragged.features, tokens, ragged.mask).hidden
    )


def test_pick_reindexes_every_tensor_of_a_tree() -> None:
    tree = (torch.arange(3), None, (torch.eye(3),))
    picked = pick(tree, torch.tensor([2, 2, 0]))
    assert (
        picked[0].tolist() == [2, 2, 0]
        and picked[1] is None
        and torch.equal(picked[2][0], torch.eye(3)[[2, 2, 0]])
    )


def test_sorting_by_length_counts_running_captions() -> None:
    tokens = torch.tensor([[1, 5, 2, 0], [1, 5, 6, 7], [1, 2, 0, 0]])
    captions = sort_by_length(tokens)
    assert captions.order.tolist() == [1, 0, 2] and captions.running == [3, 2, 1, 1]
    assert captions.lengths.tolist() == [4, 2, 1]


class TestAdditiveAttention:
    def test_many_rows_score_as_few(self) -> None:
        attention = AdditiveAttention(value_dim=3, query_dim=4, attention_dim=5)
        query, keys = torch.randn(2 * ROWS_AT_ONCE + 1, 5), torch.randn(2 * ROWS_AT_ONCE + 1, 6, 5)
        blocks: list[int] = []
        attention.score.register_forward_hook(lambda layer, inputs, output: blocks.append(len(output)))
        with torch.no_grad():
            found = attention.energies(query, keys)
        assert blocks == [ROWS_AT_ONCE, ROWS_AT_ONCE, 1]
        torch.testing.assert_close(found, attention.energies(query, keys))

    def test_zero_score_vector_gives_uniform_weights(self) -> None:
        attention = AdditiveAttention(value_dim=3, query_dim=4, attention_dim=5)
        torch.nn.init.zeros_(attention.score.weight)
        _, weights = attention(torch.randn(2, 4), attention.prepare(torch.randn(2, 6, 3), None))
        torch.testing.assert_close(weights, torch.full((2, 6), 1 / 6))

    def test_hand_computed_case(self) -> None:
        attention = AdditiveAttention(value_dim=1, query_dim=1, attention_dim=1)
        for layer in (attention.key, attention.query, attention.score):
            torch.nn.init.ones_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        values = torch.tensor([[[0.0], [1.0]]])
        context, weights = attention(torch.tensor([[0.5]]), attention.prepare(values, None))
        ratio = math.exp(math.tanh(1.5) - math.tanh(0.5))
        expected = ratio / (1 + ratio)
        assert weights[0, 1].item() == pytest.approx(expected) and context.item() == pytest.approx(expected)

    def test_gradient_matches_finite_differences(self) -> None:
        attention = AdditiveAttention(value_dim=2, query_dim=3, attention_dim=4).double()
        mask = torch.tensor([[True] * 5, [True, True, True, False, False]])

        def context(query: Tensor, values: Tensor) -> Tensor:
            return attention(query, attention.prepare(values, mask))[0].double()

        query = torch.randn(2, 3, dtype=torch.double, requires_grad=True)
        values = torch.randn(2, 5, 2, dtype=torch.double, requires_grad=True)
        # The softmax is in float32 by design, which needs wider steps and tolerances.
        assert torch.autograd.gradcheck(context, (query, values), eps=1e-2, atol=2e-3, rtol=1e-2)


def test_masked_mean_leaves_out_padding() -> None:
    values = torch.tensor([[[1.0], [3.0], [99.0]]])
    assert masked_mean(values, torch.tensor([[True, True, False]])).item() == 2.0


def test_every_family_reads_regions_of_its_encoders_size(family: str, ragged: Batch) -> None:
    model = build(family)
    regions = model.encoder(ragged.features)
    assert regions.shape == (*ragged.features.shape[:2], model.encoder.output_dim)


def test_raw_features_are_the_cached_ones_in_the_type_of_the_model() -> None:
    features, encoder = torch.randn(2, REGIONS, DIM).half(), RawFeatures(feature_dim=DIM)
    assert torch.equal(encoder(features), features.float()) and encoder.output_dim == DIM
    assert encoder.double()(features).dtype == torch.float64 and not encoder.state_dict()
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(features).dtype == torch.bfloat16


def test_a_projection_is_a_linear_layer_with_relu_for_every_region() -> None:
    features, encoder = (
        torch.randn(2, REGIONS, DIM),
        FeatureProjection(feature_dim=DIM, output_dim=3, dropout=0.0),
    )
    expected = (features @ encoder.linear.weight.T + encoder.linear.bias).clamp(min=0)
    torch.testing.assert_close(encoder(features), expected)


def test_adaptive_attention_refuses_regions_of_another_size_than_its_hidden_vector() -> None:
    with pytest.raises(InputError, match="output_dim is 6 and model.hidden_dim is 10.*projection_hidden"):
        build("adaptive", encoder=RawFeatures(feature_dim=DIM))


def gru_at_post_sizes() -> GRUAttention:
    return GRUAttention(
        encoder=FeatureProjection(feature_dim=2048, output_dim=256, dropout=0.0), vocabulary_size=5000,
        attention_dim=512, embedding_dim=256, hidden_dim=512, dropout=0.0, activation=torch.nn.Identity(),
        recurrence=CarriedState(),
    )  # fmt: skip


def test_the_posts_model_has_the_posts_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in gru_at_post_sizes().parameters()) == 6_602_889


def test_the_posts_gru_is_torchs_gru() -> None:
    model = build("gru_attention")
    cell = torch.nn.GRUCell(7 + 9, 10)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([model.context_gates.weight, model.word_gates.weight], 1))
        cell.bias_ih.copy_(model.word_gates.bias)
        cell.weight_hh.copy_(model.state_gates.weight)
        cell.bias_hh.copy_(model.state_gates.bias)
    memory = model.encode(torch.randn(2, REGIONS, DIM))
    state, tokens = torch.randn(2, 10), torch.tensor([4, START])
    context, _ = model.attention(state, memory)
    expected = cell(torch.cat([context, model.embedding(tokens)], -1), state)
    torch.testing.assert_close(model.step(tokens, state, memory).hidden, expected)


def test_attention_hears_the_last_word_only_with_a_word_query() -> None:
    for family, hears in (("gru_attention", False), ("gru_attention_word_query", True)):
        model = build(family)
        memory, state = model.encode(torch.randn(1, REGIONS, DIM)), torch.randn(1, 10)
        first, second = (model.step(torch.tensor([word]), state, memory).attention for word in (4, 5))
        assert (not torch.equal(first, second)) is hears
    words = model.embedding(torch.tensor([5]))
    _, expected = model.attention(state + model.word_query(words), memory)
    torch.testing.assert_close(second, expected)


def test_the_lstm_update_is_torchs_lstm() -> None:
    cell = torch.nn.LSTMCell(3, 4)
    given, hidden, memory = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 4)
    gates = functional.linear(given, cell.weight_ih, cell.bias_ih) + functional.linear(
        hidden, cell.weight_hh, cell.bias_hh
    )
    for one, other in zip(lstm_update(gates, memory), cell(given, (hidden, memory)), strict=True):
        torch.testing.assert_close(one, other)
