"""What is special to each family, against its paper's equations written out with torch's own cells."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.errors import InputError
from captioning.models import AttentiveTranslator, CaptionModel, MeanPooled, Step, Transformer, pick
from captioning.models.encoder import RegionSequence
from captioning.models.hard_attention import HardAttention, drawn, expectation, most_likely, see_at_test
from captioning.models.meshed_memory import MemoryLayer, MeshedLayer
from captioning.models.recurrent import LSTMState
from captioning.models.transformer_decoder import DecoderLayer, positions
from tests.conftest import DIM, REGIONS, SMALL, VOCABULARY, batch_of, build

WORDS = torch.tensor([4, 7])


def look(model: CaptionModel, steps: int = 3) -> tuple[Tensor, Step]:
    """Features (2, R, D) and the last of some steps over them."""
    features = batch_of([[4], [5]]).features
    memory = model.encode(features)
    state = model.start(memory)
    for _ in range(steps):
        step = model.step(WORDS, state, memory)
        state = step.state
    return features, step


def lstm(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """The LSTM from its definition: input, forget, new, output."""
    into, forget, new, out = gates.chunk(4, -1)
    cell = forget.sigmoid() * cell + into.sigmoid() * new.tanh()
    return out.sigmoid() * cell.tanh(), cell


def additive(attention: nn.Module, query: Tensor, values: Tensor) -> Tensor:
    scores = attention.score(torch.tanh(attention.key(values) + attention.query(query)[:, None])).squeeze(-1)
    return scores.softmax(-1)


def test_show_attend_tell_follows_the_paper() -> None:
    model = build("sat_soft")
    features, step = look(model)
    m = torch.relu(model.mean_layer(features.mean(1)))
    h, c = torch.tanh(model.start_hidden(m)), torch.tanh(model.start_cell(m))
    said = model.embedding(WORDS)
    for _ in range(3):
        alpha = additive(model.attention.scorer, h, features)
        beta = torch.sigmoid(model.gate(h))
        assert beta.shape == (2, 1)  # a scalar, not a vector
        z = beta * (alpha[..., None] * features).sum(1)
        h, c = lstm(model.word_gates(said) + model.context_gates(z) + model.state_gates(h), c)
    deep = torch.tanh(model.deep_hidden(h) + said + model.deep_context(z))
    torch.testing.assert_close(step.hidden, deep)
    torch.testing.assert_close(step.attention, alpha)


def test_deep_keys_are_two_layers() -> None:
    scorer = build("sat_soft").attention.scorer
    values = torch.randn(2, REGIONS, DIM)
    first, second, _ = scorer.key
    torch.testing.assert_close(scorer.prepare(values, None).keys, torch.tanh(second(first(values))))


@pytest.mark.parametrize("at_test", [expectation, most_likely, drawn])
def test_hard_attention_sees_what_it_is_told_at_test(at_test) -> None:
    attention = HardAttention(
        value_dim=3, query_dim=4, attention_dim=5, deep_keys=False, expectation_share=0.0, at_test=at_test
    ).eval()
    values, query = torch.randn(1, 6, 3), torch.randn(1, 4)
    seen = attention(query, attention.prepare(values, None))
    if at_test is expectation:
        torch.testing.assert_close(seen.context, (seen.weights[..., None] * values).sum(1))
    elif at_test is most_likely:
        assert torch.equal(seen.context, values[:, seen.weights.argmax()])
    else:
        assert any(torch.equal(seen.context[0], place) for place in values[0])


def test_hard_attention_sees_one_region_in_training_or_the_expectation_without_gradient() -> None:
    options = {"value_dim": 3, "query_dim": 4, "attention_dim": 5, "deep_keys": False, "at_test": expectation}
    values, query = torch.randn(2, 6, 3), torch.randn(2, 4)
    one = HardAttention(**options, expectation_share=0.0).train()
    seen = one(query, one.prepare(values, None))
    assert all(any(torch.equal(seen.context[b], place) for place in values[b]) for b in range(2))
    assert not seen.context.requires_grad and seen.extras["location_log_prob"].requires_grad
    all_of_it = HardAttention(**options, expectation_share=1.0).train()
    seen = all_of_it(query, all_of_it.prepare(values, None))
    assert not seen.context.requires_grad and not seen.extras["location_log_prob"].any()
    assert seen.extras["entropy"].requires_grad
    torch.testing.assert_close(seen.context, (seen.weights[..., None] * values).sum(1))


def test_whether_expectations_are_seen_is_decided_once_a_batch() -> None:
    model = build("sat_hard").train()
    model.attention.expectation_share = 0.5
    batches = [model.attention.prepare(torch.randn(8, REGIONS, DIM), None).expected for _ in range(40)]
    assert all(len(set(batch.tolist())) == 1 for batch in batches)
    assert 8 < sum(bool(batch[0]) for batch in batches) < 32


def test_hard_attention_in_training_is_unrolled_as_it_steps() -> None:
    """With expectations, which draw nothing: teacher forcing and single steps agree in training mode too."""
    model, batch = build("sat_hard").train(), batch_of([[4, 5, 6], [7, 8, 9]])
    model.attention.expectation_share = 1.0
    output = model(batch.features, batch.tokens[:, :-1])
    memory = model.encode(batch.features)
    state = model.start(memory)
    for t in range(4):
        step = model.step(batch.tokens[:, t], state, memory)
        torch.testing.assert_close(step.hidden, output.hidden[:, t], atol=1e-5, rtol=1e-5)
        state = step.state


def test_what_hard_attention_sees_at_test_can_be_chosen_afterwards() -> None:
    model, features = build("sat_hard"), torch.randn(2, REGIONS, DIM)
    memory = model.encode(features)
    state = model.start(memory)
    seen = {}
    for name in ("expectation", "most_likely"):
        see_at_test(model, name)
        seen[name] = model.attention(state.hidden, memory)
    weights = seen["expectation"].weights
    torch.testing.assert_close(seen["expectation"].context, (weights[..., None] * features).sum(1))
    torch.testing.assert_close(seen["most_likely"].context, features[torch.arange(2), weights.argmax(-1)])
    with pytest.raises(InputError, match="no hard attention in the model"):
        see_at_test(build("sat_soft"), "drawn")
    with pytest.raises(InputError, match="'soft'"):
        see_at_test(model, "soft")


def test_heads_that_do_not_divide_the_size_are_told() -> None:
    with pytest.raises(InputError, match="num_heads=5 does not divide"):
        Transformer(
            feature_dim=DIM,
            vocabulary_size=9,
            hidden_dim=12,
            num_layers=1,
            num_heads=5,
            inner_dim=8,
            dropout=0.0,
        )


@pytest.mark.parametrize("family", ["sat_soft", "topic_guided"])
def test_the_square_part_of_every_gate_begins_orthogonal(family: str) -> None:
    for gate in build(family).state_gates.weight.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(len(gate)), atol=1e-5, rtol=0)


def test_up_down_asks_with_the_attention_lstms_new_state() -> None:
    model = build("up_down")
    features, step = look(model)
    h1 = c1 = h2 = c2 = torch.zeros(2, 10)
    said, mean = model.embedding(WORDS), features.mean(1)
    for _ in range(3):
        gates = (
            model.word_gates(said) + model.mean_gates(mean) + model.attention_gates(torch.cat([h2, h1], -1))
        )
        h1, c1 = lstm(gates, c1)
        alpha = additive(model.attention, h1, features)  # h1 at t, not at t - 1
        seen = (alpha[..., None] * features).sum(1)
        h2, c2 = lstm(model.context_gates(seen) + model.language_gates(torch.cat([h1, h2], -1)), c2)
    torch.testing.assert_close(step.hidden, h2)
    torch.testing.assert_close(step.attention, alpha)


def test_up_downs_forget_gates_begin_open() -> None:
    model = build("up_down")
    for gates in (model.word_gates, model.context_gates):
        assert (gates.bias.chunk(4)[1] == 1).all()


@pytest.mark.parametrize("context_to", ["lstm", "output", "both"])
def test_the_translator_follows_the_paper(context_to: str) -> None:
    model = AttentiveTranslator(
        feature_dim=DIM, vocabulary_size=VOCABULARY, attention_dim=8, context_to=context_to, **SMALL
    ).eval()
    features, step = look(model)
    source = model.encoder.project(torch.cat([features, features.mean(1, keepdim=True)], 1))
    states, (d, c) = model.encoder.lstm(source)
    d, c = d[0], c[0]  # the decoder begins with the encoder's last state
    for _ in range(3):
        alpha = additive(model.attention, d, states)
        context = (alpha[..., None] * states).sum(1)
        gates = model.word_gates(model.embedding(WORDS)) + model.state_gates(d)
        if context_to != "output":
            gates = gates + model.context_gates(context)
        d, c = lstm(gates, c)
    torch.testing.assert_close(step.hidden, d if context_to == "lstm" else torch.cat([d, context], -1))
    torch.testing.assert_close(step.attention, alpha[:, :-1] + alpha[:, -1:] / REGIONS)


def test_the_translator_knows_three_places_for_its_context() -> None:
    with pytest.raises(InputError, match="context_to is 'both of them'"):
        build("attentive_translator", context_to="both of them")


@pytest.mark.parametrize(("ends", "both"), [(True, False), (False, False), (True, True), (False, True)])
def test_the_region_sequence_packs_what_it_may_also_read_dense(ends: bool, both: bool) -> None:
    """A full batch takes another path than a ragged one; a region more or less must be all that differs."""
    reader = RegionSequence(
        feature_dim=DIM, embedding_dim=5, hidden_dim=4, dropout=0.0, global_feature=ends, bidirectional=both
    ).eval()
    features = torch.randn(2, REGIONS, DIM)
    full = torch.ones(2, REGIONS, dtype=torch.bool)
    ragged = full.clone()
    ragged[1, -1] = False
    dense, packed = reader(features, full), reader(features, ragged)
    torch.testing.assert_close(dense[0][0], packed[0][0])
    torch.testing.assert_close(pick(dense[1], 0), pick(packed[1], 0))
    alone = reader(features[1:, :-1], full[1:, :-1])
    torch.testing.assert_close(alone[1].hidden[0], packed[1].hidden[1])
    assert isinstance(packed[1], LSTMState)


def test_two_directions_share_the_state_and_the_mean_may_be_left_out() -> None:
    model = build("translator_two_ways")
    features, step = look(model)
    states, (last, _) = model.encoder.lstm(model.encoder.project(features))
    memory = model.encode(features)
    torch.testing.assert_close(memory.source.values, states)  # (B, R, H), no mean region
    torch.testing.assert_close(memory.first.hidden, torch.cat([last[0], last[1]], -1))
    assert step.attention is not None and step.attention.shape == (2, REGIONS)
    with pytest.raises(InputError, match="needs an even model.hidden_dim, found 9"):
        build("translator_two_ways", hidden_dim=9)


def test_the_order_of_regions_matters_to_the_translator_alone() -> None:
    turned = torch.tensor([4, 2, 0, 1, 3])
    batch = batch_of([[4, 5]])
    for family, matters in (("attentive_translator", True), ("up_down", False), ("transformer", False)):
        model = build(family)
        one = model(batch.features, batch.tokens[:, :-1]).hidden
        other = model(batch.features[:, turned], batch.tokens[:, :-1]).hidden
        assert torch.allclose(one, other, atol=1e-6) != matters


def test_adaptive_attention_follows_the_paper() -> None:
    model = build("adaptive")
    features, step = look(model)
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
        asked = model.attention.query(h)
        scores = model.attention.score(torch.tanh(model.attention.key(regions) + asked[:, None])).squeeze(-1)
        own = model.attention.score(torch.tanh(model.sentinel_key(sentinel) + asked))
        alpha = torch.cat([scores, own], -1).softmax(-1)
        context = (alpha[:, :-1, None] * regions).sum(1) + alpha[:, -1:] * sentinel
    torch.testing.assert_close(step.hidden, torch.tanh(model.deep(context + h)))
    torch.testing.assert_close(step.extras["sentinel"], alpha[:, -1])
    torch.testing.assert_close(step.attention, scores.softmax(-1))


def test_the_mean_region_is_the_first_input_of_the_pooled_baseline() -> None:
    model = MeanPooled(feature_dim=DIM, vocabulary_size=VOCABULARY, **SMALL).eval()
    cell = nn.LSTMCell(9, 10)
    with torch.no_grad():
        cell.weight_ih.copy_(model.input_gates.weight)
        cell.bias_ih.copy_(model.input_gates.bias)
        cell.weight_hh.copy_(model.state_gates.weight)
        cell.bias_hh.zero_()
    features, step = look(model, steps=1)
    state = cell(model.project(features.mean(1)))
    expected, _ = cell(model.embedding(WORDS), state)
    torch.testing.assert_close(step.hidden, expected)


def alike(ours: DecoderLayer, theirs: nn.TransformerDecoderLayer) -> None:
    """Give torch's decoder layer our weights."""
    pairs = [
        (theirs.self_attn.in_proj_weight, ours.own.weight), (theirs.self_attn.in_proj_bias, ours.own.bias),
        (theirs.self_attn.out_proj.weight, ours.own_output.weight), (theirs.self_attn.out_proj.bias, ours.own_output.bias),
        (theirs.multihead_attn.in_proj_weight, torch.cat([ours.query.weight, ours.region.weight])),
        (theirs.multihead_attn.in_proj_bias, torch.cat([ours.query.bias, ours.region.bias])),
        (theirs.multihead_attn.out_proj.weight, ours.region_output.weight),
        (theirs.multihead_attn.out_proj.bias, ours.region_output.bias),
        (theirs.linear1.weight, ours.inner[0].weight), (theirs.linear1.bias, ours.inner[0].bias),
        (theirs.linear2.weight, ours.inner[3].weight), (theirs.linear2.bias, ours.inner[3].bias),
    ]  # fmt: skip
    with torch.no_grad():
        for target, source in pairs:
            target.copy_(source)


@pytest.mark.parametrize("meshed", [False, True])
def test_a_decoder_layer_is_torchs_pre_norm_and_a_meshed_one_with_one_open_gate_post_norm(meshed) -> None:
    sizes = {"hidden_dim": 12, "num_heads": 3, "inner_dim": 16, "dropout": 0.0}
    ours = (MeshedLayer(levels=1, **sizes) if meshed else DecoderLayer(**sizes)).eval()
    theirs = nn.TransformerDecoderLayer(
        12, 3, 16, dropout=0.0, activation="gelu", batch_first=True, norm_first=not meshed
    )
    alike(ours, theirs)
    if meshed:
        nn.init.constant_(ours.gates[0].bias, 100.0)
    words, regions = torch.randn(2, 4, 12), torch.randn(2, 5, 12)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    keys, values = (ours.heads(part) for part in ours.region(regions).chunk(2, -1))
    x, _, _ = ours.look_at_words(words, None)
    x, weights = ours.look_at_regions(x, keys, values, mask)
    causal = nn.Transformer.generate_square_subsequent_mask(4)
    expected = theirs.eval()(words, regions, causal, memory_key_padding_mask=~mask, tgt_is_causal=True)
    torch.testing.assert_close(ours.think(x), expected, atol=1e-5, rtol=1e-5)
    assert not weights[1, :, 3:].any()


def test_every_level_of_the_mesh_has_its_gate() -> None:
    mesh = MeshedLayer(levels=2, hidden_dim=12, num_heads=3, inner_dim=16, dropout=0.0).eval()
    one = MeshedLayer(levels=1, hidden_dim=12, num_heads=3, inner_dim=16, dropout=0.0).eval()
    shared = {name: value for name, value in mesh.state_dict().items() if not name.startswith("gates")}
    one.load_state_dict(shared, strict=False)
    nn.init.constant_(one.gates[0].bias, 100.0)  # lets all of the one level through
    x, levels = torch.randn(2, 4, 12), torch.randn(2, 10, 12)
    keys, values = (mesh.heads(part) for part in mesh.region(levels).chunk(2, -1))
    found, weights = mesh.look_at_regions(x, keys, values, None)
    each = [one.look_at_regions(x, keys[:, :, at], values[:, :, at], None) for at in (slice(5), slice(5, 10))]
    shares = [gate(torch.cat([x, c], -1)).sigmoid() for gate, (c, _) in zip(mesh.gates, each, strict=True)]
    expected = sum(share * c for share, (c, _) in zip(shares, each, strict=True)) / math.sqrt(2)
    torch.testing.assert_close(found, expected)
    means = [share.mean(-1, keepdim=True) for share in shares]
    shown = sum(mean * weight for mean, (_, weight) in zip(means, each, strict=True)) / sum(means)
    torch.testing.assert_close(weights, shown)


def test_a_memory_layer_looks_at_the_real_regions_and_the_slots() -> None:
    layer = MemoryLayer(hidden_dim=12, num_heads=3, inner_dim=16, num_slots=2, dropout=0.0).eval()
    regions, real = torch.randn(1, 5, 12), 3
    found = layer(regions, torch.arange(5)[None] < real)[:, :real]
    query, keys, values = layer.own(regions[0, :real]).chunk(3, -1)
    keys = torch.cat([keys, layer.slot_keys * math.sqrt(12 / 3)])
    values = torch.cat([values, layer.slot_values * math.sqrt(2)])
    heads = []
    for at in (slice(0, 4), slice(4, 8), slice(8, 12)):
        scores = query[:, at] @ keys[:, at].T / math.sqrt(4)
        heads.append(scores.softmax(-1) @ values[:, at])
    middle = layer.norms[0](regions[0, :real] + layer.own_output(torch.cat(heads, -1)))
    torch.testing.assert_close(found[0], layer.norms[1](middle + layer.inner(middle)))


def test_later_words_do_not_reach_earlier_ones_in_the_parallel_pass() -> None:
    model = build("transformer")
    one, other = batch_of([[4, 5, 6]]), batch_of([[4, 5, 9]])
    hidden = [model(b.features, b.tokens[:, :-1]).hidden for b in (one, other)]
    assert torch.equal(hidden[0][:, :3], hidden[1][:, :3]) and not torch.equal(
        hidden[0][:, 3], hidden[1][:, 3]
    )


def test_positions_are_sines_and_cosines() -> None:
    found = positions(2, 1, 4)[0]
    expected = [math.sin(2), math.cos(2), math.sin(2 / 100), math.cos(2 / 100)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_topic_guided_attention_follows_the_paper() -> None:
    model = build("topic_guided")
    features, step = look(model)
    mean = features.mean(1)
    topic = model.topic_head(mean).softmax(-1)
    logits = model.attribute_head(mean)
    likely = logits.topk(2)
    words = model.embedding(likely.indices + 4)
    prior = functional.logsigmoid(likely.values)
    h, c = torch.tanh(model.start_hidden(mean)), torch.tanh(model.start_cell(mean))
    said = model.embedding(WORDS)
    for _ in range(3):
        e = [
            part.score(torch.relu(part.key(v) + part.query(h)[:, None] + part.topic(topic)[:, None])).squeeze(
                -1
            )
            for part, v in ((model.spatial, features), (model.semantic, words))
        ]
        alpha, chosen = e[0].softmax(-1), (e[1] + prior).softmax(-1)
        z = torch.sigmoid(model.gate(h)) * (alpha[..., None] * features).sum(1)
        s = (chosen[..., None] * words).sum(1)
        gates = model.word_gates(said) + model.context_gates(torch.cat([z, s], -1)) + model.state_gates(h)
        h, c = lstm(gates, c)
    torch.testing.assert_close(step.hidden, torch.tanh(said + model.deep_hidden(h) + model.deep_context(z)))
    torch.testing.assert_close(step.attention, alpha)
