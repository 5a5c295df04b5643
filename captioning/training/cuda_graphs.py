"""The option `cuda_graphs`: while a model trains, its teacher forcing is replayed (see `models.replay`)."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from captioning.errors import InputError
from captioning.models.base import CaptionModel
from captioning.models.replay import ReplayedForward


class CudaGraphs(Callback):
    """Replaces the model's `forward` while it trains, see `ReplayedForward`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the replayed forward pass in place.

        Raises:
            InputError: this training cannot be recorded.
        """
        _refuse(_problem(trainer, pl_module))
        model: Any = pl_module.model
        model.forward = ReplayedForward(model)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let every recording be replayed once more.

        Raises:
            InputError: gradients are accumulated from this batch on.
        """
        _refuse(_accumulation(trainer))
        forward: Any = pl_module.model.forward  # type: ignore[union-attr]
        forward.begin_step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the recordings."""
        vars(pl_module.model).pop("forward", None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the recordings."""
        vars(pl_module.model).pop("forward", None)


def _refuse(problem: str | None) -> None:
    if problem:
        raise InputError(
            "cuda_graphs=true needs one CUDA device, soft attention, an objective that teaches given "
            f"captions and an update for each batch, and {problem}; give cuda_graphs=false"
        )


def _problem(trainer: Trainer, pl_module: Any) -> str | None:
    """Say why a training cannot be recorded; None if it can."""
    model, objective = pl_module.model, pl_module.objective
    name = type(model).__name__
    if pl_module.device.type != "cuda":
        return f"the training runs on {pl_module.device.type}"
    if trainer.world_size > 1:
        return f"{trainer.world_size} processes share the training"
    if model.samples_attention:
        return f"{name} samples its attention"
    if not objective.can_be_recorded:
        return f"the objective is {type(objective).__name__}"
    if type(model).forward is not CaptionModel.forward or _overrides_unroll(type(model)):
        return f"{name} has a forward pass or an unroll without an unroll_all of its own"
    return _accumulation(trainer)


def _accumulation(trainer: Trainer) -> str | None:
    # A replay writes its gradients where those of the batch before lie.
    batches = trainer.accumulate_grad_batches
    return None if batches == 1 else f"trainer.accumulate_grad_batches is {batches}"


def _overrides_unroll(kind: type) -> bool:
    """Return whether `unroll_all`, which is recorded, was written for another `unroll` than the class has."""
    # That of `CaptionModel` calls whatever `unroll` there is.
    first = next(each for each in kind.__mro__ if {"unroll", "unroll_all"} & vars(each).keys())
    return "unroll_all" not in vars(first) and kind.unroll_all is not CaptionModel.unroll_all  # type: ignore[attr-defined]
