"""One weight gradient for all words equals the sum of theirs."""

import pytest
import torch
from torch import Tensor, nn

from captioning.models.loop_linear import LoopLinear, one_weight_gradient

Parts = dict[str, Tensor | None]


def gradients(layer: LoopLinear, inputs: list[Tensor], *, shared: bool, autocast: bool = False) -> Parts:
    """Chain the words as a recurrent model does, and differentiate."""
    layer.zero_grad()
    inputs = [each.clone().requires_grad_() for each in inputs]
    state, total = torch.zeros(len(inputs[0]), layer.out_features), torch.zeros(())
    with torch.autocast("cpu", torch.bfloat16, autocast, cache_enabled=False):

        def run() -> Tensor:
            nonlocal state, total
            for each in inputs:  # fewer rows with every word
                state = torch.tanh(layer(each) + state[: len(each)])
                total = total + state.float().square().sum()
            return total

        if shared:
            with one_weight_gradient(nn.Sequential(layer)):
                loss = run()
        else:
            loss = run()
    loss.backward()
    bias = None if layer.bias is None else layer.bias.grad
    return {"weight": layer.weight.grad, "bias": bias, "input": inputs[0].grad}


@pytest.fixture
def inputs() -> list[Tensor]:
    return [torch.randn(rows, 5) for rows in (4, 4, 2, 1)]


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_equal_those_of_a_plain_layer(bias: bool, inputs: list[Tensor]) -> None:
    layer = LoopLinear(5, 3, bias=bias)
    torch.testing.assert_close(
        gradients(layer, inputs, shared=True), gradients(layer, inputs, shared=False), atol=1e-6, rtol=1e-5
    )


def test_under_autocast_they_are_no_further_from_float32(inputs: list[Tensor]) -> None:
    layer = LoopLinear(5, 3)
    exact = gradients(layer, inputs, shared=False)
    distances = []
    for shared in (True, False):
        found = gradients(layer, inputs, shared=shared, autocast=True)
        assert found["weight"].dtype == torch.float32
        distances.append(max((found[name] - exact[name]).abs().max().item() for name in exact))
    assert distances[0] < 1.5 * distances[1] and distances[1] > 0


def test_what_is_frozen_gets_no_gradient(inputs: list[Tensor]) -> None:
    layer = LoopLinear(5, 3)
    layer.weight.requires_grad_(False)
    found = gradients(layer, inputs, shared=True)
    assert found["weight"] is None and found["bias"].any() and found["input"].any()


def test_a_layer_that_no_word_uses_gets_no_gradient() -> None:
    layer = LoopLinear(5, 3)
    with one_weight_gradient(layer):
        pass
    assert layer.weight.grad is None


def test_two_loops_at_once_add_their_gradients(inputs: list[Tensor]) -> None:
    layer = LoopLinear(5, 3)
    once = gradients(layer, inputs, shared=True)["weight"].clone()
    layer.zero_grad()
    losses = []
    for _ in range(2):
        with one_weight_gradient(layer):
            state = torch.zeros(4, 3)
            for each in inputs:
                state = torch.tanh(layer(each) + state[: len(each)])
                losses.append(state.square().sum())
    sum(losses).backward()
    torch.testing.assert_close(layer.weight.grad, 2 * once)


def test_after_the_loop_and_after_an_error_it_is_a_plain_layer(inputs: list[Tensor]) -> None:
    layer = LoopLinear(5, 3)
    with pytest.raises(ZeroDivisionError), one_weight_gradient(layer):
        raise ZeroDivisionError
    layer(inputs[0]).sum().backward()
    assert layer.weight.grad.any()
