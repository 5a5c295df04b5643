"""The contract of a training objective: (model, batch) -> the loss and what is logged beside it.

The training loop calls `check` before anything is trained, `prepare` once with the training captions,
`begin_epoch` at every epoch, and the objective itself at every batch; `state_dict` goes into the
checkpoint. An objective overrides only what it needs, so that a new training idea is one class in one file.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from torch import Tensor

from captioning.data.dataset import Batch
from captioning.errors import InputError
from captioning.models.base import CaptionModel, Output
from captioning.vocabulary import Vocabulary


class Terms(NamedTuple):
    """What an objective computes for a batch.

    loss: scalar, with its gradient.
    num_words: scalar, the number of words in the batch; it weighs the batch in an epoch's means.
    logged: scalars by name, detached, without the loss itself.
    """

    loss: Tensor
    num_words: Tensor
    logged: dict[str, Tensor]


def check_range(name: str, value: float, least: float, most: float = math.inf) -> None:
    """Refuse an option of an objective that is out of its range, NaN included.

    Raises:
        InputError: names it.
    """
    if not least <= value <= most:
        upper = "" if most == math.inf else f" to {most}"
        raise InputError(f"objective.{name} is {value}; needed is a number from {least}{upper}")


def teacher_force(model: CaptionModel, batch: Batch, inputs: Tensor) -> Output:
    """Run the model over input words (C, T); an image that several captions describe is encoded once."""
    # A model of the user's may take no rows as long as captions share no images.
    rows = () if batch.image_rows is None else (batch.image_rows,)
    output: Output = model(batch.features, inputs, batch.mask, *rows)
    return output


class TrainingData(Protocol):
    """What an objective may ask of the data: whether its items are `captions` or `images`."""

    train_on: str


class Objective(ABC):
    """What a training minimises."""

    # Whether training from random weights is pointless, so that a run warns where it starts from none.
    needs_trained_model: ClassVar[bool] = False
    # Whether the loss has a term of the attention over regions.
    needs_attention: ClassVar[bool] = False
    # Whether its teacher forcing can be recorded as a CUDA graph (`models.replay`): not beside a pass
    # whose gradient is still to be computed.
    can_be_recorded: ClassVar[bool] = True

    @abstractmethod
    def __call__(self, model: CaptionModel, batch: Batch) -> Terms:
        """Compute the loss of a batch."""

    def check(self, model: CaptionModel, data: TrainingData) -> None:
        """Refuse a model or data that this objective cannot train with.

        Raises:
            InputError: here, a model with sampled attention, which no gradient of a likelihood reaches, or
                without the attention that the objective needs.
        """
        if self.needs_attention and not model.attends_to_regions:
            raise InputError(
                f"{type(self).__name__} needs a model with attention over regions, and this "
                f"{type(model).__name__} has none; choose objective=cross_entropy, or another model"
            )
        if model.samples_attention:
            raise InputError(
                f"{type(self).__name__} cannot train hard attention, which would stay as it was initialised; "
                "choose objective=reinforce, or a model with soft attention such as model=show_attend_tell"
            )

    # The hooks below do nothing unless overridden; they are no abstract methods (B027).

    def prepare(self, references: Mapping[str, Sequence[str]], vocabulary: Vocabulary) -> None:  # noqa: B027
        """Receive, before training, the captions of every training image and the vocabulary."""

    def begin_epoch(self, epoch: int) -> None:  # noqa: B027
        """Receive the epoch, counted from 0, before its first batch."""

    def state_dict(self) -> dict[str, Any]:
        """Return what is remembered from batch to batch, in plain containers and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Restore what `state_dict` returned."""
