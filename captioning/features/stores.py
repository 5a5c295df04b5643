"""How the numbers of a row are stored in the feature cache: float16, or int8 with a scale for every channel.

An int8 row is R lines of D steps from -127 to 127, then the scales: D float32 in 4 lines of D bytes. A value
is step · scale, and the scale of a channel is its largest magnitude in this row / 127. So a value that is
read back differs by at most half a scale (and float16's rounding), and zeros stay zeros.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from captioning.errors import InputError

# What a file that says nothing has; a float16 file is what it was before there was a choice.
UNRECORDED = {"store": "float16"}


class Store(NamedTuple):
    """One way to store rows.

    dtype: of the dataset `features`.
    extra_lines: beyond the R lines of the regions.
    pack: (R, D) float16 -> (R + extra_lines, D) `dtype`.
    unpack: (B, R + extra_lines, D) `dtype` -> (B, R, D) float16.
    """

    dtype: np.dtype
    extra_lines: int
    pack: Callable[[np.ndarray], np.ndarray]
    unpack: Callable[[np.ndarray], np.ndarray]

    def shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the shape in which a row of shape (R, D) is stored."""
        return shape[0] + self.extra_lines, shape[1]


def _as_it_is(features: np.ndarray) -> np.ndarray:
    return features


def _quantise(features: np.ndarray) -> np.ndarray:
    values = torch.from_numpy(features.astype(np.float32))  # (R, D)
    scales = values.abs().amax(0) / 127  # (D,)
    steps = (values / torch.where(scales > 0, scales, 1)).round_().to(torch.int8)
    return np.concatenate([steps.numpy(), scales.numpy().view(np.int8).reshape(4, -1)])


def _dequantise(stored: np.ndarray) -> np.ndarray:
    count, lines, channels = stored.shape
    features = torch.empty(count, lines - 4, channels, dtype=torch.float16)
    scales = torch.from_numpy(stored[:, -4:].reshape(count, 4 * channels).view("<f4"))  # (B, D)
    values = torch.empty(features.shape[1:])
    # Row by row through one buffer that stays in the processor's cache: a tenth of the time of all at once.
    for row, steps in enumerate(torch.from_numpy(stored[:, :-4])):
        features[row].copy_(values.copy_(steps).mul_(scales[row]))
    return features.numpy()


STORES = {
    "float16": Store(np.dtype("<f2"), 0, _as_it_is, _as_it_is),
    "int8": Store(np.dtype("i1"), 4, _quantise, _dequantise),
}


def store_of(provenance: Mapping[str, Any]) -> Store:
    """Return the store that a cache of this provenance has.

    Raises:
        InputError: there is none of this name.
    """
    name = provenance.get("store", UNRECORDED["store"])
    if not isinstance(name, str) or name not in STORES:
        raise InputError(f"features are stored as {name!r}; features.run.store is one of {', '.join(STORES)}")
    return STORES[name]
