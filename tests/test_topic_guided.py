"""Topics are fitted to training captions, and a caption depends on the image alone."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

from captioning import checkpoint
from captioning.data.topics import TopicModel
from captioning.decoding import greedy
from captioning.errors import InputError
from captioning.evaluation.captions import caption_split
from captioning.evaluation.sources import datamodule_of
from captioning.models import RawFeatures, TopicGuided
from captioning.models.topic_guided import GuidedAttention
from captioning.objectives import CrossEntropy, DoublyStochastic, TopicSupervision
from captioning.training import assemble
from captioning.vocabulary import SPECIAL_WORDS, Vocabulary
from tests.conftest import DIM, batch_of, build, compose_config

SEA, DOG = ("the sea is blue", "blue sea waves"), ("a dog runs", "brown dog barks")
WORDS = [*SPECIAL_WORDS, "sea", "dog", "blue", "runs", "waves", "barks", "brown"]


def topics(**options: Any) -> TopicModel:
    settings = {"num_topics": 2, "passes": 20, "stop_words": True, "seed": 0, **options}
    return TopicModel([SEA, DOG] * 10, Vocabulary(WORDS), **settings)


def objective(*, normalisation: str = "per_caption", **options: float) -> TopicSupervision:
    captions = DoublyStochastic(
        weight=0.0, target="length", cross_entropy=CrossEntropy(normalisation=normalisation)
    )
    settings: dict[str, Any] = {"topic_weight": 1.0, "attribute_weight": 1.0, **options}
    fit_topics = partial(TopicModel, passes=20, stop_words=True, seed=0)
    made = TopicSupervision(captions=captions, fit_topics=fit_topics, **settings)
    made.prepare({"image0": SEA, "image1": DOG}, Vocabulary(WORDS))
    return made


def test_topics_separate_documents_and_sum_to_one() -> None:
    theta = topics()([SEA, DOG, ("a sea",)])
    assert theta.shape == (3, 2) and theta.dtype == np.float32
    np.testing.assert_allclose(theta.sum(1), 1, rtol=1e-5)
    assert theta[0].argmax() == theta[2].argmax() != theta[1].argmax()


def test_words_outside_the_vocabulary_and_stop_words_are_ignored() -> None:
    model = topics()
    np.testing.assert_array_equal(model([("sea",)]), model([("the sea xylophone of",)]))


def test_without_scikit_learn_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.decomposition", None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        topics()


def test_a_vocabulary_of_stop_words_alone_is_refused() -> None:
    with pytest.raises(InputError, match="stop_words=false"):
        TopicModel(
            [("the",)], Vocabulary([*SPECIAL_WORDS, "the"]), num_topics=2, passes=1, stop_words=True, seed=0
        )


def test_guided_energy_by_hand() -> None:
    attention = GuidedAttention(value_dim=1, query_dim=1, topic_dim=2, attention_dim=1)
    for layer in (attention.key, attention.topic, attention.query, attention.score):
        torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(attention.key.bias)
    torch.nn.init.constant_(attention.score.bias, 0.5)
    regions = attention.prepare(torch.tensor([[[2.0], [-9.0]]]), None, torch.tensor([[0.25, 0.75]]))
    energy = attention.energy(torch.tensor([[3.0]]), regions)
    assert energy.tolist() == [[6.5, 0.5]]  # relu(2 + 3 + 1) + 0.5, relu(-9 + 3 + 1) + 0.5


def test_the_topic_moves_the_attention() -> None:
    """With a linear score it would cancel in the softmax."""
    model = build("topic_guided")
    batch = batch_of([[4, 5]])
    before = model(batch.features, batch.tokens[:, :-1]).attention
    with torch.no_grad():
        model.topic_head[-1].bias.copy_(torch.tensor([50.0, 0, 0, 0]))
    after = model(batch.features, batch.tokens[:, :-1]).attention
    assert (before - after).abs().max() > 1e-5


@pytest.mark.parametrize(
    ("topic_to", "moves"), [("attention", (True, True)), ("lstm", (False, True)), ("nothing", (False, False))]
)
def test_the_topic_goes_where_it_is_sent(topic_to: str, moves: tuple[bool, bool]) -> None:
    """What changes with the topic: the first attention, and the hidden vectors."""
    model = build("topic_guided", topic_to=topic_to)
    batch = batch_of([[4, 5]])
    before = model(batch.features, batch.tokens[:, :-1])
    with torch.no_grad():
        model.topic_head[-1].bias.copy_(torch.tensor([50.0, 0, 0, 0]))
    after = model(batch.features, batch.tokens[:, :-1])
    assert bool((before.attention[:, 0] - after.attention[:, 0]).abs().max() > 1e-6) == moves[0]
    assert bool((before.hidden - after.hidden).abs().max() > 1e-6) == moves[1]


def test_the_topic_has_three_ways_to_go() -> None:
    with pytest.raises(InputError, match="topic_to is 'words'; it must be attention, lstm or nothing"):
        build("topic_guided", topic_to="words")


def test_only_likely_attribute_words_are_attended_to() -> None:
    model = build("topic_guided")  # ranks 1 to 3 are the ids 4 to 6, two of them are attended to
    with torch.no_grad():
        model.attribute_head[-1].bias.copy_(torch.tensor([9.0, -9.0, 8.0]))
    memory = model.encode(batch_of([[4]]).features)
    assert torch.equal(memory.words.values, model.embedding(torch.tensor([[4, 6]])))
    torch.testing.assert_close(memory.prior.exp(), torch.ones(1, 2), atol=1e-2, rtol=0)


def test_the_loss_adds_divergence_and_attributes() -> None:
    model = TopicGuided(
        encoder=RawFeatures(feature_dim=DIM), vocabulary_size=11, embedding_dim=9, hidden_dim=10, attention_dim=8,
        num_topics=2, attribute_ranks=(1, 4), num_likely=2, dropout=0.0,
    )  # fmt: skip
    batch = batch_of([[4, 5], [6]])
    with torch.no_grad():
        for head, bias in ((model.topic_head, [0.0, math.log(3)]), (model.attribute_head, [0.0, 1.0, -1.0])):
            head[-1].weight.zero_()
            head[-1].bias.copy_(torch.tensor(bias))
    terms = objective()(model, batch)
    asked = TopicModel([SEA, DOG], Vocabulary(WORDS), num_topics=2, passes=20, stop_words=True, seed=0)(
        [SEA, DOG]
    )
    kl = (asked * np.log(asked / np.array([0.25, 0.75]))).sum(1).mean()
    assert terms.logged["topic_kl"].item() == pytest.approx(kl, rel=1e-4)
    present = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])  # sea, dog, blue
    attributes = torch.nn.functional.binary_cross_entropy_with_logits(
        torch.tensor([0.0, 1.0, -1.0]).expand(2, 3), present, reduction="sum"
    ) / 2  # fmt: skip
    assert terms.logged["attribute_nll"].item() == pytest.approx(attributes.item(), rel=1e-5)
    plain = objective(topic_weight=0.0, attribute_weight=0.0)(model, batch).loss
    assert terms.loss.item() == pytest.approx(plain.item() + kl + attributes.item(), rel=1e-5)


def test_captions_that_share_an_image_have_the_loss_of_captions_of_copies() -> None:
    batch = batch_of([[4, 5], [6], [7]])
    rows = torch.tensor([1, 0, 1])
    batch = batch._replace(image_ids=[batch.image_ids[row] for row in rows])
    losses = []
    for each in (
        batch._replace(features=batch.features[:2], image_rows=rows),
        batch._replace(features=batch.features[rows]),
    ):
        losses.append(objective()(build("topic_guided", len(WORDS)), each).loss)
    torch.testing.assert_close(*losses)


def test_the_objective_needs_the_model_that_predicts_topics() -> None:
    data = SimpleNamespace(train_on="captions")
    objective().check(build("topic_guided"), data)
    with pytest.raises(InputError, match="this GRUAttention predicts none; choose model=topic_guided"):
        objective().check(build("gru_attention"), data)


def test_attribute_ranks_must_be_words() -> None:
    with pytest.raises(InputError, match=r"attribute_ranks=\[5, 99\].* does not fit 7 words"):
        build("topic_guided", attribute_ranks=(5, 99))


def _refuse(*_: object) -> NoReturn:
    raise AssertionError("evaluation read a reference caption")


_OF_ANY_OBJECT = {"__new__", "__init__", "__class__", "__dict__", "__getattribute__", "__init_subclass__"}
# Captions that fail whatever a tuple can be asked for.
Unreadable = type("Unreadable", (), {name: _refuse for name in {*dir(tuple), "__bool__"} - _OF_ANY_OBJECT})


@pytest.mark.parametrize(
    "read",
    [
        list,
        len,
        bool,
        repr,
        hash,
        str,
        lambda s: s[0],
        lambda s: "a" in s,
        lambda s: s == (),
        lambda s: s + (),
    ]
    + [lambda s: s * 2, lambda s: s.index("a"), lambda s: s.count("a"), lambda s: s < (), reversed],
)
def test_unreadable_captions_fail_however_they_are_read(read: Callable[[Any], object]) -> None:
    with pytest.raises(AssertionError, match="read a reference"):
        read(Unreadable())


def test_attributes_are_read_from_all_captions_of_an_image() -> None:
    """The authors read an image's first caption only, which has neither of waves, barks and brown."""
    made = objective()
    made._make_targets(2, range(4, 11))
    present = {word: made._present[:, column].tolist() for column, word in enumerate(WORDS[4:])}
    assert [word for word, (sea, _) in present.items() if sea] == ["sea", "blue", "waves"]
    assert [word for word, (_, dog) in present.items() if dog] == ["dog", "runs", "barks", "brown"]


def test_evaluation_cannot_see_references(toy_overrides: list[str], tmp_path: Path) -> None:
    kept = [option for option in toy_overrides if not option.startswith("model.")]
    small = ["model=topic_guided_flickr", "objective=topic_supervision", "objective.fit_topics.passes=2", "model.num_topics=3",
             "model.attribute_ranks=[1,6]", "model.num_likely=2", "model.hidden_dim=8", "model.embedding_dim=8"]  # fmt: skip
    assemble(compose_config("train", *kept, *small, f"output_dir={tmp_path}")).fit()
    loaded = checkpoint.load(checkpoint.locate(tmp_path))
    data = datamodule_of(loaded, split="val")

    def caption() -> dict[str, str]:
        batches = data.image_dataloader("val", without_captions=True)
        return caption_split(loaded.model, loaded.vocabulary, batches, partial(greedy, max_words=8)).captions

    captions = caption()
    data.records["val"] = [record._replace(captions=Unreadable()) for record in data.records["val"]]
    with pytest.raises(AssertionError, match="read a reference"):
        data.images("val").__getitems__([0])  # reading them does fail
    assert caption() == captions and len(captions) == 8


def test_topics_and_attributes_are_divided_as_the_words_are() -> None:
    batch = batch_of([[4, 5, 6], [5]])
    per_token, per_caption = (
        objective(normalisation=kind)(build("topic_guided"), batch).loss.item()
        for kind in ("per_token", "per_caption")
    )
    assert per_token * 6 == pytest.approx(per_caption * 2, rel=1e-5)  # six words with the ENDs, two captions
