"""A linear layer inside the loop over words, whose weight gradient is computed once for all words.

Applied T times, a plain linear layer converts its weight T times under autocast, and its backward pass
computes and adds T weight gradients, each from the B rows of one word. `LoopLinear` converts once, keeps the
inputs and gradients of all words, and multiplies them once: more rows in one product are faster, and the sum
over words is the product's own, which accumulates in float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional

# Input and output gradient of each word, (B, input) and (B, output).
Words = list[tuple[Tensor, Tensor]]


class LoopLinear(nn.Linear):
    """A linear layer; inside `one_weight_gradient` it is applied as described above, elsewhere as any."""

    _shared: tuple[Tensor, Tensor | None, Words] | None = None

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, input) to (B, output)."""
        if self._shared is None:
            return super().forward(input)
        return _Word.apply(input, *self._shared)


@contextmanager
def one_weight_gradient(model: nn.Module) -> Iterator[None]:
    """Compute each `LoopLinear`'s weight gradient once for all its calls inside this context."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoopLinear)]
    for layer in layers:
        words: Words = []
        layer._shared = (*_Weight.apply(layer.weight, layer.bias, words), words)
    try:
        yield
    finally:
        for layer in layers:
            layer._shared = None


class _Weight(Function):
    """Converts weight and bias; its backward pass comes after those of all words."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, words: Words) -> tuple[Tensor, Tensor | None]:
        ctx.words, ctx.dtype = words, weight.dtype
        ctx.set_materialize_grads(False)
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        # Views, because a Function may not return its input itself.
        return weight.to(dtype).view_as(weight), None if bias is None else bias.to(dtype).view_as(bias)

    @staticmethod
    def backward(ctx: Any, *_: None) -> tuple[Tensor | None, Tensor | None, None]:
        if not ctx.words:
            return None, None, None
        inputs, gradients = (torch.cat(parts) for parts in zip(*ctx.words, strict=True))
        ctx.words.clear()
        weight = (gradients.T @ inputs).to(ctx.dtype) if ctx.needs_input_grad[0] else None
        bias = gradients.sum(0, dtype=ctx.dtype) if ctx.needs_input_grad[1] else None
        return weight, bias, None


class _Word(Function):
    """Applies the converted weight to one word, and leaves the weight's gradient to `_Weight`."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, words: Words) -> Tensor:
        ctx.words, ctx.dtype = words, input.dtype
        input = input.to(weight.dtype)
        ctx.save_for_backward(input, weight)
        return functional.linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        input, weight = ctx.saved_tensors
        ctx.words.append((input, gradient))
        return (gradient @ weight).to(ctx.dtype) if ctx.needs_input_grad[0] else None, None, None, None
