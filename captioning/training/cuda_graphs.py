"""Training steps as CUDA graphs: teacher forcing is recorded once for each shape of a batch, then replayed.

Word by word, a recurrent decoder starts some hundred short kernels, and Python takes longer to start them
than a GPU to run them. A replay starts them all at once. What is recorded leaves nothing out (`unroll_all`)
and its captions are padded to a multiple of four words, so that shapes come again; scores of words, loss and
update are run as ever.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional

from captioning.errors import InputError
from captioning.models.base import CaptionModel, Output, Tree, pick
from captioning.vocabulary import PAD

WORDS = 4  # captions are padded to a multiple of it
MOST = 32  # recordings, each of which keeps its tensors; further shapes are run without
Record = Callable[[nn.Module, tuple[Tensor, ...]], Callable[..., tuple[Tensor, ...]]]


class CudaGraphs(Callback):
    """Replaces the model's `forward` while it trains, see `ReplayedForward`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the replayed forward pass in place.

        Raises:
            InputError: this training cannot be recorded.
        """
        model: Any = pl_module.model
        if problem := _problem(trainer, pl_module):
            raise InputError(
                "cuda_graphs=true needs one CUDA device, soft attention, an objective that teaches given "
                f"captions and an update for each batch, and {problem}; give cuda_graphs=false"
            )
        model.forward = ReplayedForward(model)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Let every recording be replayed once more."""
        forward: Any = pl_module.model.forward  # type: ignore[union-attr]
        forward.begin_step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Free the recordings."""
        vars(pl_module.model).pop("forward", None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Free the recordings."""
        vars(pl_module.model).pop("forward", None)


def _problem(trainer: Trainer, pl_module: Any) -> str | None:
    """Say why a training cannot be recorded; None if it can."""
    if pl_module.device.type != "cuda":
        return f"the training runs on {pl_module.device.type}"
    if trainer.world_size > 1:
        return f"{trainer.world_size} processes share the training"
    if trainer.accumulate_grad_batches != 1:
        # A replay writes its gradients where those of the batch before lie.
        return f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}"
    if pl_module.model.samples_attention:
        return f"{type(pl_module.model).__name__} samples its attention"
    if not pl_module.objective.can_be_recorded:
        return f"the objective is {type(pl_module.objective).__name__}"
    return None


class ReplayedForward:
    """Teacher forcing of a model, equal to `CaptionModel.forward`, dropout's random numbers aside.

    Without gradient, or in evaluation mode, the model's own `forward` runs. So it does where a shape comes up
    a second time in a step, whose backward pass still needs the tensors of the first.

    Args:
        model: on a CUDA device.
        record: makes a function that does what the module does with tensors shaped like those given.
    """

    def __init__(self, model: CaptionModel, record: Record | None = None) -> None:
        self.model, self.record = model, record or record_graph
        self._recordings: dict[tuple[Any, ...], tuple[Unrolled, Callable[..., tuple[Tensor, ...]]]] = {}
        self._used: set[tuple[Any, ...]] = set()

    def begin_step(self) -> None:
        """Let every recording be replayed once more; the backward passes of the last step are done."""
        self._used.clear()

    def __call__(
        self,
        features: Tensor,
        tokens: Tensor,
        mask: Tensor | None = None,
        image_rows: Tensor | None = None,
    ) -> Output:
        """Compute what `CaptionModel.forward` computes.

        Raises:
            InputError: the model cannot be recorded.
        """
        own = type(self.model).forward
        if not (self.model.training and torch.is_grad_enabled()):
            return own(self.model, features, tokens, mask, image_rows)
        # How many images a batch has is chance; captions that share one encode it anew.
        regions, their_mask = (features, mask) if image_rows is None else pick((features, mask), image_rows)
        words = tokens.shape[1]
        padded = functional.pad(tokens, (0, -words % WORDS), value=PAD)
        inputs = (regions, padded) if their_mask is None else (regions, padded, their_mask)
        key = tuple((tuple(part.shape), part.dtype) for part in inputs)
        full = key not in self._recordings and len(self._recordings) >= MOST
        if full or key in self._used or len(regions) != len(tokens):
            return own(self.model, features, tokens, mask, image_rows)
        if key not in self._recordings:
            body = Unrolled(self.model)
            try:
                self._recordings[key] = body, self.record(body, inputs)
            except RuntimeError as error:
                raise InputError(
                    f"cuda_graphs=true can't record {type(self.model).__name__} "
                    f"({str(error).splitlines()[0]}); give cuda_graphs=false"
                ) from error
        self._used.add(key)
        body, replay = self._recordings[key]
        output = body.rebuild(replay(*inputs))
        return Output(
            output.hidden[:, :words],
            None if output.attention is None else output.attention[:, :words],
            output.memory,
            {name: values[:, :words] for name, values in output.extras.items()},
        )


class Unrolled(nn.Module):
    """A model's teacher forcing, as a function from tensors to a flat tuple of tensors.

    Args:
        model: which is trained.
    """

    def __init__(self, model: CaptionModel) -> None:
        super().__init__()
        self.model = model
        self._output: Tree = None  # the last one, for its structure

    def forward(self, features: Tensor, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Process words (B, T) of images (B, R, D)."""
        output = self.model.unroll_all(self.model.encode(features, mask), tokens)
        self._output = _without_tensors(output)
        return tuple(_tensors(output))

    def rebuild(self, tensors: tuple[Tensor, ...]) -> Output:
        """Put tensors in the places that they have in the model's output."""
        output: Output = _fill(self._output, iter(tensors))
        return output


def record_graph(body: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """Record forward and backward pass for tensors of these shapes; the training's random numbers stay."""
    with torch.random.fork_rng([inputs[0].device]):
        copies = tuple(part.clone() for part in inputs)
        return torch.cuda.make_graphed_callables(body, copies, allow_unused_input=True)  # type: ignore[return-value]


_TENSOR = object()  # stands where a tensor was


def _map(tree: Tree, change: Callable[[Any], Any]) -> Tree:
    if isinstance(tree, dict):
        return {name: _map(part, change) for name, part in tree.items()}
    if isinstance(tree, tuple):
        parts = [_map(part, change) for part in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)
    return change(tree)


def _tensors(tree: Tree) -> list[Tensor]:
    found: list[Tensor] = []
    _map(tree, lambda part: found.append(part) if isinstance(part, Tensor) else None)
    return found


def _without_tensors(tree: Tree) -> Tree:
    return _map(tree, lambda part: _TENSOR if isinstance(part, Tensor) else part)


def _fill(tree: Tree, tensors: Iterator[Tensor]) -> Tree:
    return _map(tree, lambda part: next(tensors) if part is _TENSOR else part)
