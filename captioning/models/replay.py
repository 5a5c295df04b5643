"""Teacher forcing as CUDA graphs: recorded once for each shape of a batch, then replayed.

Word by word, a recurrent decoder starts some hundred short kernels, and Python takes longer to start them
than a GPU to run them. A replay starts them all at once. What is recorded leaves nothing out (`unroll_all`)
and its captions are padded to a multiple of four words, so that shapes come again; scores of words, loss and
update are run as ever.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning.errors import InputError
from captioning.models.base import CaptionModel, Output, Tree, pick
from captioning.vocabulary import PAD

log = logging.getLogger(__name__)

LENGTH_MULTIPLE = 4  # captions are padded to a multiple of it
MAX_RECORDINGS = 32  # each keeps its tensors; further shapes are run without
Record = Callable[[nn.Module, tuple[Tensor, ...]], Callable[..., tuple[Tensor, ...]]]


class ReplayedForward:
    """Teacher forcing of a model, equal to `CaptionModel.forward`, dropout's random numbers aside.

    Without gradient, or in evaluation mode, the model's class runs it. So it does where a shape comes up a
    second time in a step, whose backward pass still needs the tensors of the first. A recording keeps the
    Python numbers that it was made with, such as the probability of dropout.

    Args:
        model: on a CUDA device.
        record: makes a function that does what the module does with tensors shaped like those given.
    """

    def __init__(self, model: CaptionModel, record: Record | None = None) -> None:
        self.model, self.record = model, record or record_graph
        self._recordings: dict[tuple[Any, ...], tuple[Unrolled, Callable[..., tuple[Tensor, ...]]]] = {}
        self._used: set[tuple[Any, ...]] = set()
        self._warned = False

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the model has other weights than the recordings.
        return ReplayedForward, (self.model, self.record)

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
        training = self.model.training and torch.is_grad_enabled()
        found = self._recorded(features, tokens, mask, image_rows) if training else None
        if found is None:
            rows = () if image_rows is None else (image_rows,)
            output: Output = type(self.model).forward(self.model, features, tokens, mask, *rows)
            return output
        (body, replay), inputs = found
        output, words = body.rebuild(replay(*inputs)), tokens.shape[1]
        return Output(
            output.hidden[:, :words],
            None if output.attention is None else output.attention[:, :words],
            output.memory,
            {name: values[:, :words] for name, values in output.extras.items()},
        )

    def _recorded(
        self, features: Tensor, tokens: Tensor, mask: Tensor | None, image_rows: Tensor | None
    ) -> tuple[tuple["Unrolled", Callable[..., tuple[Tensor, ...]]], tuple[Tensor, ...]] | None:
        """Find or make the recording for these shapes, and its inputs; None where there is none to replay."""
        if image_rows is not None:  # how many images a batch has is chance: each caption gets its own
            features, mask = pick((features, mask), image_rows)
        padded = functional.pad(tokens, (0, -tokens.shape[1] % LENGTH_MULTIPLE), value=PAD)
        inputs = (features, padded) if mask is None else (features, padded, mask)
        trained = tuple(parameter.requires_grad for parameter in self.model.parameters())
        key = (trained, *((part.shape, part.dtype) for part in inputs))
        if key in self._used or len(features) != len(tokens):
            return None
        if key not in self._recordings:
            if len(self._recordings) >= MAX_RECORDINGS:
                if not self._warned:
                    log.info("%d shapes of batches are recorded; others run without", MAX_RECORDINGS)
                self._warned = True
                return None
            body = Unrolled(self.model)
            try:
                self._recordings[key] = body, self.record(body, inputs)
            except RuntimeError as error:
                raise InputError(
                    f"cuda_graphs=true can't record {type(self.model).__name__} "
                    f"({str(error).splitlines()[0]}); give cuda_graphs=false"
                ) from error
        self._used.add(key)
        recording = self._recordings[key]
        return (recording, inputs) if recording[0].has_gradient else None


class Unrolled(nn.Module):
    """A model's teacher forcing, as a function from tensors to a flat tuple of tensors.

    Args:
        model: which is trained.
    """

    def __init__(self, model: CaptionModel) -> None:
        super().__init__()
        self.model = model
        self.has_gradient = False  # what no gradient reaches, as below a frozen part, has no backward pass
        self._output: Tree = None  # the last one, for its structure

    def forward(self, features: Tensor, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Process words (B, T) of images (B, R, D)."""
        output = self.model.unroll_all(self.model.encode(features, mask), tokens)
        self._output = _without_tensors(output)
        tensors = tuple(_tensors(output))
        self.has_gradient = any(part.requires_grad for part in tensors)
        return tensors

    def rebuild(self, tensors: tuple[Tensor, ...]) -> Output:
        """Put tensors in the places that they have in the model's output."""
        output: Output = _fill(self._output, iter(tensors))
        return output


def record_graph(body: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """Record forward and backward pass for tensors of these shapes; the training's random numbers stay."""
    with torch.random.fork_rng([inputs[0].device]):
        copies = tuple(part.clone() for part in inputs)
        return torch.cuda.make_graphed_callables(body, copies, allow_unused_input=True)  # type: ignore[return-value]


# torch.cuda.make_graphed_callables takes apart what a function returns, but stumbles over None in it.
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
