"""Dropout from random bytes has the properties of torch's."""

import pytest
import torch

from captioning.models.dropout import Dropout


@pytest.mark.parametrize(("probability", "real"), [(0.5, 0.5), (0.2, 51 / 256)])
def test_a_share_is_dropped_and_the_mean_stays(probability: float, real: float) -> None:
    kept = Dropout(probability)(torch.ones(1000, 1000)) != 0
    deviation = (real * (1 - real) / kept.numel()) ** 0.5
    assert abs(1 - kept.float().mean().item() - real) < 4 * deviation
    found = Dropout(probability)(torch.ones(1000, 1000)).unique().tolist()
    assert found == pytest.approx([0, 1 / (1 - real)])


def test_neighbours_are_dropped_independently() -> None:
    """All eight bytes of a draw are independent: pairs at every distance up to nine drop together by chance."""
    kept = (Dropout(0.5)(torch.ones(800_000)) != 0).float()
    for place in range(8):
        assert abs(kept[place::8].mean().item() - 0.5) < 4 * 0.5 / 100_000**0.5
    for distance in range(1, 10):
        together = (kept[distance:] * kept[:-distance]).mean().item()
        assert abs(together - 0.25) < 5 * (3 / 16 / 800_000) ** 0.5 * 1.3


def test_gradients_pass_where_values_do() -> None:
    x = torch.ones(3, 5, 7, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_masks_follow_the_seed_and_change_from_call_to_call() -> None:
    layer, masks = Dropout(0.5), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks += [layer(torch.ones(64)), layer(torch.ones(64))]
    assert torch.equal(masks[0], masks[2]) and torch.equal(masks[1], masks[3])
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_types_and_shapes_are_kept(dtype: torch.dtype) -> None:
    for shape in ((0, 4), (1,), (3, 5)):
        y = Dropout(0.3)(torch.ones(shape, dtype=dtype).transpose(0, -1))
        assert y.dtype == dtype and y.shape == shape[::-1]


def test_nothing_is_dropped_at_probability_zero_or_outside_training_and_all_at_one() -> None:
    x = torch.randn(100)
    assert torch.equal(Dropout(0.0)(x), x) and torch.equal(Dropout(0.5).eval()(x), x)
    assert not Dropout(1.0)(x).any()
    torch.manual_seed(3)
    small = Dropout(0.001)(torch.ones(100_000))  # too small for a byte
    torch.manual_seed(3)
    assert torch.equal(small, torch.nn.Dropout(0.001)(torch.ones(100_000)))
