"""Averaged weights (Polyak and Juditsky 1992): an exponential moving average of them over the steps.

The average is what is validated, chosen by and kept as a checkpoint's weights; training goes on with its own.
The captions that are logged after an epoch (`SampleCaptions`) are written with these, not with the average.
"""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging


class AveragedWeights(EMAWeightAveraging):
    """Lightning's callback, whose checkpoints are also right where they are written inside a validation.

    Args:
        decay: of the average at every step; it looks back about 1 / (1 - decay) steps.
    """

    def __init__(self, *, decay: float) -> None:
        super().__init__(decay=decay, use_buffers=False)  # buffers are copied: statistics do not drift
        self._validates = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange the model's weights for the average."""
        super().on_validation_epoch_start(trainer, pl_module)
        self._validates = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange them back."""
        super().on_validation_epoch_end(trainer, pl_module)
        self._validates = False

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the average into `state_dict` and the model's own weights into `current_model_state`."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._validates:  # the two are exchanged
            average, own = checkpoint["current_model_state"], checkpoint["state_dict"]
            checkpoint.update(state_dict=average, current_model_state=own)
