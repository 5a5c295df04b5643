"""A collapse of attention is measured and warned of."""

import logging
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from captioning.models.attention import AdditiveAttention
from captioning.training import assemble
from captioning.training.attention_statistics import (
    AttentionStatistics,
    attention_statistics,
    describe_collapse,
    pool,
)
from tests.conftest import compose_config


def maps(*rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows)


def test_even_attention_has_the_greatest_entropy_and_one_region_none() -> None:
    assert attention_statistics(torch.full((2, 3, 4), 0.25)).entropy == pytest.approx(1.0)
    assert attention_statistics(torch.eye(4)[None]).entropy == pytest.approx(0.0)


def test_change_is_the_share_of_attention_that_moves() -> None:
    moved = attention_statistics(maps([[0.5, 0.5, 0.0], [0.5, 0.0, 0.5], [1.0, 0.0, 0.0]]))
    assert moved.change == pytest.approx(0.5) and (moved.maps, moved.pairs) == (3, 2)


def test_words_after_the_end_and_padded_regions_do_not_count() -> None:
    padded = maps([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    statistics = attention_statistics(padded, torch.tensor([[True, True, False]]))
    assert statistics == (pytest.approx(1.0), pytest.approx(0.0), 2, 1)


def test_pictures_of_one_region_say_nothing() -> None:
    only = attention_statistics(maps([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[True, False]]))
    assert (only.maps, only.pairs) == (0, 0) and describe_collapse(only) is None


def test_batches_are_pooled_by_what_they_count() -> None:
    parts = [AttentionStatistics(1.0, 0.5, 1, 3), AttentionStatistics(0.0, 0.1, 3, 1)]
    assert pool(parts) == (pytest.approx(0.25), pytest.approx(0.4), 4, 4)


def test_a_batch_that_says_nothing_hides_no_collapse() -> None:
    nothing = AttentionStatistics(math.nan, math.nan, 0, 0)
    assert "evenly" in str(describe_collapse(pool([AttentionStatistics(1.0, 0.2, 6, 4), nothing])))
    assert "same map" in str(describe_collapse(pool([nothing, AttentionStatistics(0.5, 0.0, 6, 4)])))
    assert describe_collapse(pool([nothing])) is None


def test_both_kinds_of_collapse_are_told_and_health_is_not() -> None:
    assert "evenly over all regions (entropy 0.999" in str(
        describe_collapse(AttentionStatistics(0.999, 0.1, 9, 8))
    )
    assert "same map for every word" in str(describe_collapse(AttentionStatistics(0.5, 0.001, 9, 8)))
    assert describe_collapse(AttentionStatistics(0.8, 0.2, 9, 8)) is None


def test_training_warns_of_a_fabricated_collapse(
    toy_overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def even(self: AdditiveAttention, query: Tensor, regions: object) -> Tensor:
        count = regions.keys.shape[1]  # type: ignore[attr-defined]
        return 0 * self.score(torch.tanh(self.query(query))) + query.new_full((len(query), count), 1 / count)

    monkeypatch.setattr(AdditiveAttention, "weigh", even)
    with caplog.at_level(logging.WARNING):
        assemble(
            compose_config("train", *toy_overrides, "trainer.max_epochs=2", f"output_dir={tmp_path}")
        ).fit()
    warnings = [r.message for r in caplog.records if "attention has collapsed" in r.message]
    assert len(warnings) == 1 and "spreads evenly" in warnings[0] and "optimizer.lr" in warnings[0]


def test_a_collapse_that_comes_back_is_told_again(
    toy_overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    found = iter(["the same map for every word", "still the same map", None, "it spreads evenly"])
    monkeypatch.setattr("captioning.training.module.describe_collapse", lambda _: next(found))
    with caplog.at_level(logging.WARNING):
        assemble(
            compose_config("train", *toy_overrides, "trainer.max_epochs=4", f"output_dir={tmp_path}")
        ).fit()
    told = [r.message.split(":")[1] for r in caplog.records if "attention has collapsed" in r.message]
    assert [words.split(".")[0].strip() for words in told] == [
        "the same map for every word",
        "it spreads evenly",
    ]


def test_training_does_not_warn_without_one(
    toy_overrides: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weigh = AdditiveAttention.weigh

    def peaked(self: AdditiveAttention, query: Tensor, regions: object) -> Tensor:
        weights = weigh(self, query, regions)  # type: ignore[arg-type]
        place = torch.randint(weights.shape[1], (len(weights),))
        return 0.1 * weights + 0.9 * torch.nn.functional.one_hot(place, weights.shape[1])

    monkeypatch.setattr(AdditiveAttention, "weigh", peaked)
    with caplog.at_level(logging.WARNING):
        assemble(compose_config("train", *toy_overrides, f"output_dir={tmp_path}")).fit()
    assert not any("attention has collapsed" in record.message for record in caplog.records)
