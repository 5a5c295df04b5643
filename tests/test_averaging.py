"""Averaged weights: what is validated and kept, and that runs go on from them as if they had not stopped."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from captioning import checkpoint
from captioning.errors import InputError
from tests.test_runs import At, checkpoint_of, differences, prepare, send

DECAY = ["averaging=exponential", "averaging.decay=0.9"]


class Record(Callback):
    """Notes a weight after every step, and in every validation."""

    def __init__(self) -> None:
        self.trained: list[Tensor] = []
        self.validated: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.trained.append(module.model.embedding.weight.detach().clone())

    def on_validation_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        self.validated.append(module.model.embedding.weight.detach().clone())


@pytest.mark.slow
def test_the_average_is_validated_and_kept_and_training_goes_on_with_its_own_weights(
    toy_overrides: list[str], tmp_path: Path
) -> None:
    record = Record()
    prepare(toy_overrides, tmp_path / "a", *DECAY, do=record).fit()
    average = record.trained[0]
    for weight in record.trained[1:]:
        average = 0.9 * average + 0.1 * weight
    kept = checkpoint.load(tmp_path / "a").model.state_dict()["embedding.weight"]
    torch.testing.assert_close(kept, average)
    torch.testing.assert_close(record.validated[-1], average)
    content = checkpoint_of(tmp_path / "a")
    own = content["current_model_state"]["model.embedding.weight"]
    assert torch.equal(own, record.trained[-1]) and not torch.equal(own, kept)
    prepare(toy_overrides, tmp_path / "b").fit()  # the average changes nothing of the training
    assert torch.equal(checkpoint_of(tmp_path / "b")["state_dict"]["model.embedding.weight"], own)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "now", "message"),
    [
        (DECAY, [], "was trained with averaged weights; give averaging=exponential, or start_from="),
        ([], DECAY, "was trained without averaged weights; give averaging=none, or start_from="),
    ],
)
def test_a_run_goes_on_with_averaging_only_if_it_began_with_it(
    toy_overrides: list[str], tmp_path: Path, before: list[str], now: list[str], message: str
) -> None:
    prepare([*toy_overrides, "trainer.max_epochs=1", *before], tmp_path / "run").fit()
    with pytest.raises(InputError, match=message):
        prepare([*toy_overrides, "trainer.max_epochs=2", *now], tmp_path / "run", "resume=auto")


@pytest.mark.slow
@pytest.mark.parametrize(("hook", "step"), [("on_train_batch_start", 11), ("on_validation_batch_start", 8)])
def test_a_run_with_averaged_weights_goes_on_as_if_it_had_not_stopped(
    toy_overrides: list[str], tmp_path: Path, hook: str, step: int
) -> None:
    options = [*toy_overrides, *DECAY, "trainer.max_epochs=2"]
    prepare(options, tmp_path / "unbroken").fit()
    with pytest.raises(SystemExit):
        prepare(options, tmp_path / "run", do=At(hook, step, send(signal.SIGUSR1))).fit()
    prepare(options, tmp_path / "run", "resume=auto").fit()
    for name in ("last.ckpt", "best.ckpt"):
        assert not differences(
            checkpoint_of(tmp_path / "unbroken", name), checkpoint_of(tmp_path / "run", name)
        )
