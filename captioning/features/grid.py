"""Where the cells of a grid of features lie in the picture."""

import math
from collections.abc import Sequence

import numpy as np


def grid_margin(image_size: Sequence[int], grid: tuple[int, int]) -> tuple[float, float]:
    """Share of the image's height, and of its width, that lies outside the grid on each side.

    Convolutions without padding see less than the whole image: InceptionV3's 8 × 8 cells stand 32 pixels
    apart and cover 256 of 299. Stretched over the whole image, attention would be up to one cell too far out.

    Args:
        image_size: H and W in pixels of what the network saw.
        grid: H and W of its cells.
    """
    down, across = map(_margin, image_size, grid)
    return down, across


def cell_boxes(image_size: Sequence[int], grid: tuple[int, int]) -> np.ndarray:
    """Compute the boxes of a grid's cells, row by row from the top left.

    Args:
        image_size: see `grid_margin`.
        grid: see `grid_margin`.

    Returns:
        (R, 4) x1 y1 x2 y2 as fractions of the image's width and height.
    """
    edges = [
        np.linspace(margin, 1 - margin, cells + 1)
        for margin, cells in zip(grid_margin(image_size, grid), grid, strict=True)
    ]
    top, left = np.meshgrid(edges[0][:-1], edges[1][:-1], indexing="ij")  # (H, W)
    bottom, right = np.meshgrid(edges[0][1:], edges[1][1:], indexing="ij")
    return np.stack([left, top, right, bottom], -1).reshape(-1, 4)


def _margin(pixels: int, cells: int) -> float:
    # Strides of convolutional networks are powers of two; padding changes the quotient only a little.
    stride = 2 ** round(math.log2(pixels / cells))
    # Padded convolutions may cover more than the image (9 cells of 32 pixels over 260): no margin then.
    return max(0.0, (1 - cells * stride / pixels) / 2)
