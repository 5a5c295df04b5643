"""What is special to each family, compared with the equations of its paper, written out with torch's cells."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.errors import InputError
from captioning.models import (
    CaptionModel,
    Expectation,
    HardAttention,
    MostLikely,
    SampledRegion,
    Step,
    pick,
)
from captioning.models.attentive_translator import RegionSequence
from captioning.models.meshed_memory import MemoryLayer, MeshedLayer
from captioning.models.recurrent import LSTMState
from captioning.models.transformer_decoder import DecoderLayer, sinusoids
from tests.conftest import DIM, FAMILIES, REGIONS, batch_of, build

WORDS = torch.tensor([4, 7])


def run_steps(model: CaptionModel, steps: int = 3) -> tuple[Tensor, Step]:
    """Random features (2, R, D), and the last of some steps over them."""
    features = batch_of([[4], [5]]).features
    memory = model.encode(features)
    state = model.start(memory)
    for _ in range(steps):
        step = model.step(WORDS, state, memory)
        state = step.state
    return features, step


def lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The LSTM by its definition: input, forget, new, output."""
    into, forget, new, out = gates.chunk(4, -1)
    cell = forget.sigmoid() * cell + into.sigmoid() * new.tanh()
    return out.sigmoid() * cell.tanh(), cell


def additive(attention: nn.Module, query: Tensor, values: Tensor) -> Tensor:
    scores = attention.score(torch.tanh(attention.key(values) + attention.query(query)[:, None])).squeeze(-1)
    return scores.softmax(-1)


def test_show_attend_tell_follows_the_paper() -> None:
    model = build("show_attend_tell")
    features, step = run_steps(model)
    m = torch.relu(model.mean_layer(features.mean(1)))
    h, c = torch.tanh(model.initial_state.hidden(m)), torch.tanh(model.initial_state.cell(m))
    words = model.embedding(WORDS)
    for _ in range(3):
        alpha = additive(model.attention.scorer, h, features)
        beta = torch.sigmoid(model.gate(h))
        assert beta.shape == (2, 1)  # a scalar, not a vector
        z = beta * (alpha[..., None] * features).sum(1)
        h, c = lstm(model.word_gates(words) + model.context_gates(z) + model.state_gates(h), c)
    deep = torch.tanh(model.deep_hidden(h) + words + model.deep_context(z))
    torch.testing.assert_close(step.hidden, deep)
    torch.testing.assert_close(step.attention, alpha)


def test_deep_keys_are_two_layers() -> None:
    scorer = build("show_attend_tell").attention.scorer
    values = torch.randn(2, REGIONS, DIM)
    first, second, _ = scorer.key
    torch.testing.assert_close(scorer.prepare(values, None).keys, torch.tanh(second(first(values))))


@pytest.mark.parametrize(
    "at_test", [Expectation(), MostLikely(), SampledRegion()], ids=lambda m: type(m).__name__
)
def test_hard_attention_at_test_is_what_it_is_built_with(at_test: nn.Module) -> None:
    attention = HardAttention(
        value_dim=3, query_dim=4, attention_dim=5, deep_keys=False, expectation_share=0.0, at_test=at_test
    ).eval()
    values, query = torch.randn(1, 6, 3), torch.randn(1, 4)
    context, weights, _ = attention(query, attention.prepare(values, None))
    if isinstance(at_test, Expectation):
        torch.testing.assert_close(context, (weights[..., None] * values).sum(1))
    elif isinstance(at_test, MostLikely):
        assert torch.equal(context, values[:, weights.argmax()])
    else:
        assert any(torch.equal(context[0], region) for region in values[0])


def test_hard_attention_sees_one_region_in_training_or_the_expectation_without_gradient() -> None:
    options = {
        "value_dim": 3,
        "query_dim": 4,
        "attention_dim": 5,
        "deep_keys": False,
        "at_test": Expectation(),
    }
    values, query = torch.randn(2, 6, 3), torch.randn(2, 4)
    sampling = HardAttention(**options, expectation_share=0.0).train()
    context, _, extras = sampling(query, sampling.prepare(values, None))
    assert all(any(torch.equal(context[b], region) for region in values[b]) for b in range(2))
    assert not context.requires_grad and extras["location_log_prob"].requires_grad
    expecting = HardAttention(**options, expectation_share=1.0).train()
    context, weights, extras = expecting(query, expecting.prepare(values, None))
    assert not context.requires_grad and not extras["location_log_prob"].any()
    assert extras["entropy"].requires_grad
    torch.testing.assert_close(context, (weights[..., None] * values).sum(1))


def test_the_use_of_expectations_is_decided_once_a_batch() -> None:
    model = build("show_attend_tell_hard").train()
    model.attention.expectation_share = 0.5
    batches = [model.attention.prepare(torch.randn(8, REGIONS, DIM), None).expected for _ in range(40)]
    assert all(len(set(batch.tolist())) == 1 for batch in batches)
    assert 8 < sum(bool(batch[0]) for batch in batches) < 32


def test_hard_attention_in_training_is_unrolled_as_it_steps() -> None:
    """With expectations, where samples have no effect, both agree in training mode too."""
    model, batch = build("show_attend_tell_hard").train(), batch_of([[4, 5, 6], [7, 8, 9]])
    model.attention.expectation_share = 1.0
    output = model(batch.features, batch.tokens[:, :-1])
    memory = model.encode(batch.features)
    state = model.start(memory)
    for t in range(4):
        step = model.step(batch.tokens[:, t], state, memory)
        torch.testing.assert_close(step.hidden, output.hidden[:, t], atol=1e-5, rtol=1e-5)
        state = step.state


def test_a_model_declares_whether_it_attends_to_regions(model: CaptionModel) -> None:
    batch = batch_of([[4, 5]])
    assert model.attends_to_regions == (
        model(batch.features, batch.tokens[:, :-1], batch.mask).attention is not None
    )


def test_a_model_declares_whether_training_samples_its_attention_and_whether_it_predicts_topics() -> None:
    sampling = {name for name in FAMILIES if build(name).samples_attention}
    assert sampling == {"show_attend_tell_hard"}
    topics = {name for name in FAMILIES if build(name).predicts_topics}
    assert topics == {"topic_guided", "topic_guided_lstm"}


def test_expected_attention_lasts_as_long_as_its_context_and_draws_as_many_random_numbers() -> None:
    model, batch = build("show_attend_tell_hard").train(), batch_of([[4, 5, 6], [7, 8, 9]])
    following = []
    for context in (model.expected_attention(), nullcontext()):
        torch.manual_seed(3)
        with context:
            output = model(batch.features, batch.tokens[:, :-1])
        assert output.extras["location_log_prob"].any() != (len(following) == 0)
        following.append(torch.rand(1))
        model.attention.expectation_share = 0.0  # of the second round: every batch samples
    assert torch.equal(*following)
    with pytest.raises(RuntimeError), model.expected_attention():
        raise RuntimeError
    assert model.attention.expectation_share == 0.0


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "show_attend_tell_hard"])
def test_expected_attention_changes_nothing_in_a_model_that_does_not_sample(name: str) -> None:
    model, batch = build(name), batch_of([[4, 5]])
    outside = model(batch.features, batch.tokens[:, :-1]).hidden
    with model.expected_attention():
        inside = model(batch.features, batch.tokens[:, :-1]).hidden
    assert torch.equal(inside, outside)


def test_heads_that_do_not_divide_the_size_are_refused() -> None:
    with pytest.raises(InputError, match="num_heads=5 does not divide model.hidden_dim=12"):
        build("transformer", num_heads=5)


@pytest.mark.parametrize("family", ["show_attend_tell", "topic_guided"])
def test_the_square_part_of_every_gate_starts_orthogonal(family: str) -> None:
    for gate in build(family).state_gates.weight.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(len(gate)), atol=1e-5, rtol=0)


def test_the_query_of_up_down_is_the_attention_lstms_new_state() -> None:
    model = build("up_down")
    features, step = run_steps(model)
    h1 = c1 = h2 = c2 = torch.zeros(2, 10)
    words, mean = model.embedding(WORDS), features.mean(1)
    for _ in range(3):
        gates = (
            model.word_gates(words) + model.mean_gates(mean) + model.attention_gates(torch.cat([h2, h1], -1))
        )
        h1, c1 = lstm(gates, c1)
        alpha = additive(model.attention, h1, features)  # h1 at t, not at t - 1
        context = (alpha[..., None] * features).sum(1)
        h2, c2 = lstm(model.context_gates(context) + model.language_gates(torch.cat([h1, h2], -1)), c2)
    torch.testing.assert_close(step.hidden, h2)
    torch.testing.assert_close(step.attention, alpha)


def test_the_forget_gates_of_up_down_start_open() -> None:
    model = build("up_down")
    for gates in (model.word_gates, model.context_gates):
        assert (gates.bias.chunk(4)[1] == 1).all()


@pytest.mark.parametrize("context_to", ["lstm", "output", "both"])
def test_the_translator_follows_the_paper(context_to: str) -> None:
    model = build("attentive_translator", context_to=context_to)
    features, step = run_steps(model)
    source = model.sequence.project(torch.cat([features, features.mean(1, keepdim=True)], 1))
    states, (d, c) = model.sequence.lstm(source)
    d, c = d[0], c[0]  # the decoder starts from the encoder's last state
    for _ in range(3):
        alpha = additive(model.attention, d, states)
        context = (alpha[..., None] * states).sum(1)
        gates = model.word_gates(model.embedding(WORDS)) + model.state_gates(d)
        if context_to != "output":
            gates = gates + model.context_gates(context)
        d, c = lstm(gates, c)
    torch.testing.assert_close(step.hidden, d if context_to == "lstm" else torch.cat([d, context], -1))
    torch.testing.assert_close(step.attention, alpha[:, :-1] + alpha[:, -1:] / REGIONS)


def test_a_translator_without_attention_has_the_encoders_last_state_alone() -> None:
    model = build("attentive_translator_without_attention")
    features, step = run_steps(model)
    states, (h, c) = model.sequence(features, None)
    words = model.embedding(WORDS)
    for _ in range(3):
        h, c = lstm(model.word_gates(words) + model.state_gates(h), c)
    torch.testing.assert_close(step.hidden, h)
    assert step.attention is None and not any("attention" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("counts", [None, [5, 3]])
def test_a_shuffled_translator_reads_in_another_order_and_keeps_the_regions_places(
    counts: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("attentive_translator_shuffled").train()
    batch = batch_of([[4], [5]], counts=counts)
    keys = torch.arange(REGIONS, 0, -1) / (REGIONS + 1)  # from the last region to the first
    monkeypatch.setattr(torch, "rand", lambda *size, **options: keys.expand(*size))
    found = model.encode(batch.features, batch.mask)
    for row, count in enumerate(counts or [REGIONS, REGIONS]):
        states, last = model.sequence(batch.features[row : row + 1, :count].flip(1), None)
        torch.testing.assert_close(found.source.values[row, :count], states[0, :count].flip(0))
        torch.testing.assert_close(found.source.values[row, -1], states[0, -1])  # the global feature
        torch.testing.assert_close(found.first.hidden[row], last.hidden[0])


def test_a_shuffled_translator_draws_an_order_for_every_image_and_one_in_evaluation() -> None:
    model, batch = build("attentive_translator_shuffled"), batch_of([[4], [5]])
    same = batch.features[:1].expand(2, -1, -1)
    first, second = model.train().encode(same).first.hidden
    assert not torch.allclose(first, second)
    first, second = model.eval().encode(same).first.hidden
    assert torch.equal(first, second) and torch.equal(first, model.encode(same).first.hidden[0])


def test_the_translators_context_has_three_places_to_go() -> None:
    with pytest.raises(
        InputError, match="context_to is 'both of them'; it must be lstm, output, both or nothing"
    ):
        build("attentive_translator", context_to="both of them")


@pytest.mark.parametrize("global_feature", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_region_sequence_reads_packed_regions_like_dense_ones(
    global_feature: bool, bidirectional: bool
) -> None:
    """A full batch takes another path than a ragged one, but an image's states must not depend on the others."""
    sequence = RegionSequence(
        feature_dim=DIM,
        embedding_dim=5,
        hidden_dim=4,
        dropout=0.0,
        global_feature=global_feature,
        bidirectional=bidirectional,
    ).eval()
    features = torch.randn(2, REGIONS, DIM)
    full = torch.ones(2, REGIONS, dtype=torch.bool)
    ragged = full.clone()
    ragged[1, -1] = False
    dense, packed = sequence(features, full), sequence(features, ragged)
    torch.testing.assert_close(dense[0][0], packed[0][0])
    torch.testing.assert_close(pick(dense[1], 0), pick(packed[1], 0))
    alone = sequence(features[1:, :-1], full[1:, :-1])
    torch.testing.assert_close(alone[1].hidden[0], packed[1].hidden[1])
    assert isinstance(packed[1], LSTMState)


def test_two_directions_share_the_state_and_the_mean_can_be_left_out() -> None:
    model = build("attentive_translator_bidirectional")
    features, step = run_steps(model)
    states, (last, _) = model.sequence.lstm(model.sequence.project(features))
    memory = model.encode(features)
    torch.testing.assert_close(memory.source.values, states)  # (B, R, H), no mean region
    torch.testing.assert_close(memory.first.hidden, torch.cat([last[0], last[1]], -1))
    assert step.attention is not None and step.attention.shape == (2, REGIONS)
    with pytest.raises(InputError, match="needs an even model.hidden_dim, found 9"):
        build("attentive_translator_bidirectional", hidden_dim=9)


def test_the_order_of_regions_matters_to_the_translator_alone() -> None:
    order = torch.tensor([4, 2, 0, 1, 3])
    batch = batch_of([[4, 5]])
    for family, matters in (("attentive_translator", True), ("up_down", False), ("transformer", False)):
        model = build(family)
        one = model(batch.features, batch.tokens[:, :-1]).hidden
        other = model(batch.features[:, order], batch.tokens[:, :-1]).hidden
        assert torch.allclose(one, other, atol=1e-6) != matters


def test_adaptive_attention_follows_the_paper() -> None:
    model = build("adaptive")
    features, step = run_steps(model)
    regions = torch.relu(model.encoder.linear(features))
    h = c = torch.zeros(2, 10)
    for _ in range(3):
        gates = (
            model.word_gates(model.embedding(WORDS))
            + model.global_gates(regions.mean(1))
            + model.state_gates(h)
        )
        h, c = lstm(gates[:, :40], c)
        sentinel = gates[:, 40:].sigmoid() * c.tanh()
        query = model.attention.query(h)
        scores = model.attention.score(torch.tanh(model.attention.key(regions) + query[:, None])).squeeze(-1)
        sentinel_score = model.attention.score(torch.tanh(model.sentinel_key(sentinel) + query))
        alpha = torch.cat([scores, sentinel_score], -1).softmax(-1)
        context = (alpha[:, :-1, None] * regions).sum(1) + alpha[:, -1:] * sentinel
    torch.testing.assert_close(step.hidden, torch.tanh(model.deep(context + h)))
    torch.testing.assert_close(step.extras["sentinel"], alpha[:, -1])
    torch.testing.assert_close(step.attention, scores.softmax(-1))


def test_the_mean_region_is_the_first_input_of_the_pooled_baseline() -> None:
    model = build("mean_pooled")
    cell = nn.LSTMCell(9, 10)
    with torch.no_grad():
        cell.weight_ih.copy_(model.input_gates.weight)
        cell.bias_ih.copy_(model.input_gates.bias)
        cell.weight_hh.copy_(model.state_gates.weight)
        cell.bias_hh.zero_()
    features, step = run_steps(model, steps=1)
    state = cell(model.project(features.mean(1)))
    expected, _ = cell(model.embedding(WORDS), state)
    torch.testing.assert_close(step.hidden, expected)


def copy_weights(ours: DecoderLayer, theirs: nn.TransformerDecoderLayer) -> None:
    """Copy our weights into torch's decoder layer."""
    pairs = [
        (theirs.self_attn.in_proj_weight, ours.self_attn_qkv.weight),
        (theirs.self_attn.in_proj_bias, ours.self_attn_qkv.bias),
        (theirs.self_attn.out_proj.weight, ours.self_attn_out.weight),
        (theirs.self_attn.out_proj.bias, ours.self_attn_out.bias),
        (theirs.multihead_attn.in_proj_weight, torch.cat([ours.cross_attn_q.weight, ours.cross_attn_kv.weight])),
        (theirs.multihead_attn.in_proj_bias, torch.cat([ours.cross_attn_q.bias, ours.cross_attn_kv.bias])),
        (theirs.multihead_attn.out_proj.weight, ours.cross_attn_out.weight),
        (theirs.multihead_attn.out_proj.bias, ours.cross_attn_out.bias),
        (theirs.linear1.weight, ours.mlp[0].weight), (theirs.linear1.bias, ours.mlp[0].bias),
        (theirs.linear2.weight, ours.mlp[3].weight), (theirs.linear2.bias, ours.mlp[3].bias),
    ]  # fmt: skip
    with torch.no_grad():
        for target, source in pairs:
            target.copy_(source)


@pytest.mark.parametrize("meshed", [False, True])
def test_a_decoder_layer_is_torchs_pre_norm_and_a_meshed_one_with_one_open_gate_post_norm(
    meshed: bool,
) -> None:
    sizes = {"hidden_dim": 12, "num_heads": 3, "mlp_dim": 16, "dropout": 0.0}
    ours = (MeshedLayer(num_levels=1, **sizes) if meshed else DecoderLayer(**sizes)).eval()
    theirs = nn.TransformerDecoderLayer(
        12, 3, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=not meshed
    )
    copy_weights(ours, theirs)
    if meshed:
        nn.init.constant_(ours.gates[0].bias, 100.0)
    words, regions = torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    keys, values = (ours.heads(part) for part in ours.cross_attn_kv(regions).chunk(2, -1))
    x, _, _ = ours.self_attention(words, None)
    x, weights = ours.cross_attention(x, keys, values, mask)
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    expected = theirs.eval()(words, regions, causal, memory_key_padding_mask=~mask, tgt_is_causal=True)
    torch.testing.assert_close(ours.feed_forward(x), expected, atol=1e-5, rtol=1e-5)
    assert not weights[1, :, 3:].any()


def test_every_level_of_the_mesh_has_its_gate() -> None:
    mesh = MeshedLayer(num_levels=2, hidden_dim=12, num_heads=3, mlp_dim=16, dropout=0.0).eval()
    one = MeshedLayer(num_levels=1, hidden_dim=12, num_heads=3, mlp_dim=16, dropout=0.0).eval()
    shared = {name: value for name, value in mesh.state_dict().items() if not name.startswith("gates")}
    one.load_state_dict(shared, strict=False)
    nn.init.constant_(one.gates[0].bias, 100.0)  # lets all of the one level through
    x, levels = torch.randn(2, 4, 12), torch.randn(2, 10, 12)
    keys, values = (mesh.heads(part) for part in mesh.cross_attn_kv(levels).chunk(2, -1))
    found, weights = mesh.cross_attention(x, keys, values, None)
    each = [one.cross_attention(x, keys[:, :, at], values[:, :, at], None) for at in (slice(5), slice(5, 10))]
    shares = [gate(torch.cat([x, c], -1)).sigmoid() for gate, (c, _) in zip(mesh.gates, each, strict=True)]
    expected = sum(share * c for share, (c, _) in zip(shares, each, strict=True)) / math.sqrt(2)
    torch.testing.assert_close(found, expected)
    means = [share.mean(-1, keepdim=True) for share in shares]
    average = sum(mean * weight for mean, (_, weight) in zip(means, each, strict=True)) / sum(means)
    torch.testing.assert_close(weights, average)


def test_a_memory_layer_attends_to_the_real_regions_and_the_slots() -> None:
    layer = MemoryLayer(hidden_dim=12, num_heads=3, mlp_dim=16, num_slots=2, dropout=0.0).eval()
    regions, real = torch.randn(1, 5, 12), 3
    found = layer(regions, torch.arange(5)[None] < real)[:, :real]
    query, keys, values = layer.self_attn_qkv(regions[0, :real]).chunk(3, -1)
    keys = torch.cat([keys, layer.slot_keys * math.sqrt(12 / 3)])
    values = torch.cat([values, layer.slot_values * math.sqrt(2)])
    heads = []
    for at in (slice(0, 4), slice(4, 8), slice(8, 12)):
        scores = query[:, at] @ keys[:, at].T / math.sqrt(4)
        heads.append(scores.softmax(-1) @ values[:, at])
    middle = layer.self_attn_norm(regions[0, :real] + layer.self_attn_out(torch.cat(heads, -1)))
    torch.testing.assert_close(found[0], layer.mlp_norm(middle + layer.mlp(middle)))


def test_later_words_do_not_reach_earlier_ones_in_the_parallel_pass() -> None:
    model = build("transformer")
    one, other = batch_of([[4, 5, 6]]), batch_of([[4, 5, 9]])
    hidden = [model(b.features, b.tokens[:, :-1]).hidden for b in (one, other)]
    assert torch.equal(hidden[0][:, :3], hidden[1][:, :3]) and not torch.equal(
        hidden[0][:, 3], hidden[1][:, 3]
    )


def test_positions_are_sines_and_cosines() -> None:
    found = sinusoids(2, 1, 4)[0]
    expected = [math.sin(2), math.cos(2), math.sin(2 / 100), math.cos(2 / 100)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_topic_guided_attention_follows_the_paper() -> None:
    model = build("topic_guided")
    features, step = run_steps(model)
    mean = features.mean(1)
    topic = model.topic_head(mean).softmax(-1)
    logits = model.attribute_head(mean)
    likely = logits.topk(2)
    attributes = model.embedding(likely.indices + 4)
    prior = functional.logsigmoid(likely.values)
    h, c = torch.tanh(model.initial_state.hidden(mean)), torch.tanh(model.initial_state.cell(mean))
    words = model.embedding(WORDS)
    for _ in range(3):
        e = [
            part.score(torch.relu(part.key(v) + part.query(h)[:, None] + part.topic(topic)[:, None])).squeeze(
                -1
            )
            for part, v in ((model.spatial, features), (model.semantic, attributes))
        ]
        alpha, chosen = e[0].softmax(-1), (e[1] + prior).softmax(-1)
        z = torch.sigmoid(model.gate(h)) * (alpha[..., None] * features).sum(1)
        s = (chosen[..., None] * attributes).sum(1)
        gates = model.word_gates(words) + model.context_gates(torch.cat([z, s], -1)) + model.state_gates(h)
        h, c = lstm(gates, c)
    torch.testing.assert_close(step.hidden, torch.tanh(words + model.deep_hidden(h) + model.deep_context(z)))
    torch.testing.assert_close(step.attention, alpha)
