"""Several networks side by side as one source of region features: each cell has the channels of all.

Networks trained apart see different things. Each gets the picture at its own size, its grid is resampled to
the common one, and the channels are joined in the order in which the networks are named. Encoders that
standardise every channel (conf/encoder, all but `raw`) let no network outweigh the others by its scale.
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.features.frozen import NORMALISATION, FrozenExtractor

_PLACE = "features.extractor"
_MOST = 16  # backbones; a stranger's file could take a machine down by their number


class CombinedBackbones(FrozenExtractor):
    """Backbones whose grids are resampled to one size and joined channel by channel.

    Args:
        backbones: by a name of your choice, the class of each with its options, not yet called
            (`_partial_: true` in a config).
        grid: rows and columns of the common grid.
        image_size: height and width in pixels at which a picture is read, the largest that any of them
            needs; each gets it scaled to its own `image_size`.
        state: the tensors of all, where a portable file brings them; no weights are then read.

    Raises:
        InputError: no backbone, one that gives no grid, or see the backbone's own class.
    """

    def __init__(
        self,
        *,
        backbones: Mapping[str, partial[FrozenExtractor]],
        grid: Sequence[int],
        image_size: Sequence[int],
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(backbones=backbones, grid=grid, image_size=image_size)
        self._common_grid = (int(grid[0]), int(grid[1]))
        self.backbones = nn.ModuleList()
        for position, (name, prepared) in enumerate(backbones.items()):
            own = None if state is None else _under(f"backbones.{position}.", state)
            backbone = _build(name, prepared, own)
            self.backbones.append(backbone)
            self.provenance |= {f"{name}.{key}": value for key, value in backbone.provenance.items()}
            self.missing_weights += [f"{name}.{layer}" for layer in backbone.missing_weights]
        self.measure()

    @classmethod
    def expected_provenance(cls, **options: Any) -> dict[str, Any]:
        """Return what a cache must record: that of every backbone, under its name."""
        backbones, grid = options.pop("backbones", None), options.get("grid")
        if not isinstance(backbones, Mapping) or not 1 <= len(backbones) <= _MOST:
            raise InputError(
                f"{_PLACE}.backbones is {backbones!r:.80}; needed are 1 to {_MOST} backbones with names"
            )
        if not isinstance(grid, Sequence) or len(grid) != 2 or not all(_is_count(side) for side in grid):
            raise InputError(f"{_PLACE}.grid is {grid!r:.80}; needed are the numbers of rows and columns")
        expected = {**super().expected_provenance(**options), "backbones": list(backbones)}
        for name, prepared in backbones.items():
            kind = _class_of(name, prepared)
            own = {"class": kind.__name__, **kind.expected_provenance(**prepared.keywords)}
            expected |= {f"{name}.{key}": value for key, value in own.items()}
        return expected

    def forward(self, images: Tensor) -> Tensor:
        """Compute the joined grid of each image.

        Args:
            images: (B, 3, h, w) bytes, as `transform` gives them.

        Returns:
            (B, H, W, D) float32, D the sum over the backbones.
        """
        parts: Any = self.backbones
        grids = [self._resampled(part(_scaled(images, part.image_size))) for part in parts]
        return torch.cat(grids, -1)  # (B, H, W, D)

    def _resampled(self, grid: Tensor) -> Tensor:
        """Resample (B, h, w, D) to the common grid."""
        if grid.shape[1:3] == self._common_grid:
            return grid
        channels_first = grid.permute(0, 3, 1, 2)  # (B, D, h, w)
        # Each cell is the mean of all cells that it touches.
        resampled = nn.functional.adaptive_avg_pool2d(channels_first, self._common_grid)
        return resampled.permute(0, 2, 3, 1)


def _build(
    name: str, prepared: partial[FrozenExtractor], state: Mapping[str, Tensor] | None
) -> FrozenExtractor:
    kind, place = _class_of(name, prepared), f"{_PLACE}.backbones.{name}"
    brought: dict[str, Any] = {}
    # The constructor makes the normalisation; what has nothing else needs no tensors.
    if state is not None and state.keys() - NORMALISATION:
        if "state" not in inspect.signature(kind).parameters:
            raise InputError(
                f"the backbone {name} ({kind.__name__}) cannot be given the weights of a portable file: its "
                "constructor needs the argument state; see captioning/features/frozen.py"
            )
        brought = {"state": state}
    try:
        backbone = prepared(**brought)
    except InputError as error:
        text = str(error).replace(_PLACE, place)
        raise InputError(f"backbone {name}, whose options stand under {place}: {text}") from error
    except TypeError as error:  # options that the constructor does not have, or that it lacks
        raise InputError(f"the options under {place} do not fit {kind.__name__}: {error}") from error
    if backbone.grid is None:
        raise InputError(
            f"{name} ({kind.__name__}) gives no grid whose channels could be joined with others'; leave it "
            f"out of {_PLACE}.backbones"
        )
    return backbone


def _class_of(name: Any, prepared: Any) -> Any:
    if not str(name).isidentifier():
        raise InputError(
            f"{_PLACE}.backbones has the name {name!r}; needed is a word of letters, digits and underscores"
        )
    found = prepared.func if isinstance(prepared, partial) else None
    if not (isinstance(found, type) and issubclass(found, FrozenExtractor)):
        raise InputError(
            f"{_PLACE}.backbones.{name} is {prepared!r:.40}; needed is an extractor's class as _target_, and "
            "_partial_: true"
        )
    return found


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): part for key, part in state.items() if key.startswith(prefix)}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 1


def _scaled(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale bytes (B, 3, h, w) to a height and width, rounded to bytes again."""
    if images.shape[2:] == size:
        return images
    scaled = nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)
