"""Several networks side by side as one source of region features: each cell has the channels of all.

Networks trained apart see different things. Each gets the picture at its own size, its grid is resampled to
the common one, and the channels are joined in the order of the names' listing. Encoders standardise every
channel, so that no network outweighs the others by its scale.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.features.frozen import FrozenExtractor


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
        self.backbones = nn.ModuleDict()
        for name, options in backbones.items():
            self.backbones[name] = self._build(name, options, state)
        self.measure()

    @classmethod
    def expected_provenance(cls, **options: Any) -> dict[str, Any]:
        """Return what a cache must record: that of every backbone, under its name."""
        backbones = options.pop("backbones")
        if not backbones:
            raise InputError("no backbones were given; features.extractor.backbones needs one or more")
        expected = {**super().expected_provenance(**options), "backbones": list(backbones)}
        for name, backbone in backbones.items():
            kind = _class_of(name, backbone)
            own = kind.expected_provenance(**backbone.keywords)
            expected |= {f"{name}.{key}": value for key, value in {"class": kind.__name__, **own}.items()}
        return expected

    def forward(self, images: Tensor) -> Tensor:
        """Compute the joined grid of each image.

        Args:
            images: (B, 3, h, w) bytes, as `transform` gives them.

        Returns:
            (B, H, W, D) float32, D the sum over the backbones.
        """
        grids = [self._resampled(part(_scaled(images, part.image_size))) for part in self._parts()]
        return torch.cat(grids, -1)  # (B, H, W, D)

    def _parts(self) -> list[Any]:
        return list(self.backbones.values())

    def _build(
        self, name: str, build: partial[FrozenExtractor], state: Mapping[str, Tensor] | None
    ) -> FrozenExtractor:
        prefix = f"backbones.{name}."
        brought = {}
        if state is not None:
            own = {key.removeprefix(prefix): part for key, part in state.items() if key.startswith(prefix)}
            brought = {"state": own}
        try:
            backbone = build(**brought)
        except InputError as error:
            place = f"features.extractor.backbones.{name}"
            raise InputError(f"backbone {name}, whose options stand under {place}: {error}") from error
        if backbone.grid is None:
            raise InputError(
                f"{name} ({type(backbone).__name__}) gives no grid whose channels could be joined with "
                "others'; leave it out of features.extractor.backbones"
            )
        self.provenance |= {f"{name}.{key}": value for key, value in backbone.provenance.items()}
        self.missing_weights += [f"{name}.{layer}" for layer in backbone.missing_weights]
        return backbone

    def _resampled(self, grid: Tensor) -> Tensor:
        """Resample (B, h, w, D) to the common grid."""
        if grid.shape[1:3] == self._common_grid:
            return grid
        channels_first = grid.permute(0, 3, 1, 2)  # (B, D, h, w)
        # `area` averages what a cell covers, also where the grid grows.
        resampled = nn.functional.interpolate(channels_first, self._common_grid, mode="area")
        return resampled.permute(0, 2, 3, 1)


def _class_of(name: str, backbone: Any) -> Any:
    if not isinstance(backbone, partial):
        raise InputError(
            f"features.extractor.backbones.{name} is a {type(backbone).__name__}; needed are a class as "
            "_target_ and _partial_: true"
        )
    kind: Any = backbone.func  # a class, which `partial` knows as a function
    return kind


def _scaled(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale bytes (B, 3, h, w) to a height and width, rounded to bytes again."""
    if images.shape[2:] == size:
        return images
    scaled = nn.functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return scaled.round().clamp(0, 255).to(torch.uint8)
