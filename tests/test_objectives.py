"""Losses by hand."""

import math

import pytest
import torch
from torch import Tensor

from captioning.data import Batch
from captioning.errors import InputError
from captioning.models import CaptionModel, Output
from captioning.objectives import CrossEntropy
from captioning.vocabulary import END, PAD, START
from tests.conftest import batch_of, build
from tests.test_decoding import Fixed

PROBABILITIES = [0.1, 0.1, 0.2, 0.1, 0.5]


def loss_of(objective: CrossEntropy, captions: list[list[int]]) -> dict[str, Tensor]:
    return objective(Fixed(PROBABILITIES), batch_of(captions))


def test_cross_entropy_is_the_mean_over_real_words() -> None:
    terms = loss_of(CrossEntropy(), [[4, 4], []])
    expected = -(2 * math.log(0.5) + 2 * math.log(0.2)) / 4  # two words and END; END alone
    assert terms["loss"].item() == pytest.approx(expected) and terms["tokens"] == 4


def test_per_caption_divides_by_captions() -> None:
    terms = loss_of(CrossEntropy(normalisation="per_caption"), [[4, 4], []])
    assert terms["loss"].item() == pytest.approx(-(2 * math.log(0.5) + 2 * math.log(0.2)) / 2)
    assert terms["nll"].item() == pytest.approx(-(2 * math.log(0.5) + 2 * math.log(0.2)) / 4)


def test_label_smoothing_is_torchs() -> None:
    terms = loss_of(CrossEntropy(label_smoothing=0.2), [[4]])
    logits = torch.tensor(PROBABILITIES).log().expand(2, -1)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor([4, END]), label_smoothing=0.2)
    assert terms["loss"].item() == pytest.approx(expected.item())


def test_the_end_of_the_longest_caption_is_a_target_and_start_never_is() -> None:
    seen: list[Tensor] = []

    class Spy(Fixed):
        def head(self, hidden: Tensor) -> Tensor:
            seen.append(hidden)
            return super().head(hidden)

    batch = batch_of([[4, 4, 4], [4]])
    CrossEntropy()(Spy(PROBABILITIES), batch)
    targets = batch.tokens[:, 1:]
    assert len(seen[0]) == (targets != PAD).sum() == 6  # padding never reaches the head
    assert not (targets == START).any() and targets[0, -1] == END


def test_only_two_normalisations_exist() -> None:
    with pytest.raises(InputError, match="per_token or per_caption"):
        CrossEntropy(normalisation="mean")


def test_dropped_rows_give_the_gradient_of_the_plain_loop(ragged: Batch) -> None:
    """Already a law of test_models; here with dropout's random draws out of the way and a hand-written loss."""
    model = build("gru_attention")
    loss = CrossEntropy()(model, ragged)["loss"]
    output: Output = CaptionModel.unroll(
        model, model.encode(ragged.features, ragged.mask), ragged.tokens[:, :-1]
    )
    log_probs = model.head(output.hidden).log_softmax(-1)
    targets = ragged.tokens[:, 1:]
    picked = log_probs.gather(-1, targets[..., None]).squeeze(-1)
    assert loss.item() == pytest.approx((-picked[targets != PAD].mean()).item(), abs=1e-6)
