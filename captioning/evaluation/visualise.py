"""Pictures of where the model looked for each word.

As in the seed post: the image once a word, with the attention laid over it smoothly. Weights are scaled to
each word's own minimum and maximum for display only (flaw S13; boxes to their maximum), so that a diffuse map
is seen as such by its title.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLUMNS = 4  # pictures a row
STRONGEST = 3  # boxes that get an outline
SIDE = 256  # pixels of a shown picture's longer side


def attention_figure(
    image: Image.Image,
    words: Sequence[str],
    attention: np.ndarray,
    boxes: np.ndarray | None = None,
    title: str = "",
    margin: float = 0.0,
) -> Any:
    """Draw the image and then, once a word, the image with that word's attention.

    Args:
        image: RGB, any size; shown with its own aspect.
        words: T words.
        attention: (T, R) weights of each word over the regions. Without boxes the regions are the cells of a
            square grid, row by row from the top left.
        boxes: (R, 4) x1 y1 x2 y2 as fractions of the picture, for detector regions.
        title: shown above all.
        margin: see `grid_margin`.

    Returns:
        a matplotlib Figure; `close` it after use.
    """
    from matplotlib.figure import Figure

    image = image.copy()
    image.thumbnail((SIDE * 2, SIDE * 2))
    rows = math.ceil((len(words) + 1) / COLUMNS)
    height = 2.6 * image.height / image.width + 0.45
    figure = Figure(figsize=(2.6 * COLUMNS, rows * min(height, 4.0) + 0.4), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    axes[0].imshow(image)
    axes[0].set_title("picture", fontsize=11, color="grey")
    for axis, word, weights in zip(axes[1:], words, attention, strict=False):
        axis.set_title(word, fontsize=15)
        axis.imshow(overlay(image, weights, boxes, margin))
    if title:
        figure.suptitle(title, fontsize=15)
    return figure


def grid_margin(image_size: int, num_regions: int) -> float:
    """Share of the picture's side that lies outside the grid on each side.

    Convolutions without padding see a smaller square than the picture: InceptionV3's 8 × 8 cells stand 32
    pixels apart and cover 256 of 299. Stretched over the whole picture, attention would be shown too far out,
    by up to a cell. Steps of convolutional networks are powers of two, so the largest one that fits is the
    cell's.
    """
    side = math.isqrt(num_regions)
    step = 2 ** int(math.log2(image_size / side))
    return (1 - side * step / image_size) / 2


def overlay(
    image: Image.Image, weights: np.ndarray, boxes: np.ndarray | None = None, margin: float = 0.0
) -> np.ndarray:
    """Light up the regions a word looked at and darken the rest: (H, W, 3) bytes.

    Args:
        image: RGB.
        weights: (R,) attention of one word.
        boxes: see `attention_figure`.
        margin: see `grid_margin`.
    """
    if boxes is None:
        heat = _grid_heat(weights, image.size, margin)
        heat = heat - heat.min()
    else:
        heat = _box_heat(weights, boxes, image.size)
        image = _outline(image, boxes[np.argsort(-weights)[:STRONGEST]])
    heat = heat / max(float(heat.max()), 1e-8)
    pixels = np.asarray(image, dtype=np.float32)
    warm = np.array([255.0, 190.0, 60.0], dtype=np.float32)
    lit = pixels * (0.30 + 0.70 * heat[..., None]) + warm * 0.22 * heat[..., None]
    return lit.clip(0, 255).astype(np.uint8)


PICTURE_FORMATS = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".tif", ".tiff", ".webp")


def save(figure: Any, path: Any) -> None:
    """Write the figure to a file of any format that matplotlib knows by its suffix."""
    figure.savefig(path, dpi=100)


def close(figure: Any) -> None:
    """Free the figure."""
    figure.clear()


def _grid_heat(weights: np.ndarray, size: tuple[int, int], margin: float) -> np.ndarray:
    side = math.isqrt(len(weights))
    if side * side != len(weights):
        raise ValueError(f"{len(weights)} regions are no square grid; pass their boxes")
    rings = 2  # of cells around the grid: empty where the picture goes on, so that the light fades there
    padded = np.pad(weights.reshape(side, side), rings, mode="constant" if margin else "edge")
    across = side / (1 - 2 * margin)  # cells that would cover the picture
    start = rings - margin * across
    box = (start, start, start + across, start + across)
    grid = Image.fromarray(padded.astype(np.float32))
    return np.asarray(grid.resize(size, Image.Resampling.BICUBIC, box=box)).clip(0)


def _outline(image: Image.Image, boxes: np.ndarray) -> Image.Image:
    image, scale = image.copy(), np.array([*image.size, *image.size])
    pen = ImageDraw.Draw(image)
    for box in boxes:
        left, top, right, bottom = (np.asarray(box) * scale).tolist()
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline="white", width=2)
    return image


def _box_heat(weights: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    heat = np.zeros((height, width), dtype=np.float32)
    corners = (np.asarray(boxes) * np.array([width, height, width, height])).round().astype(int)
    for weight, (left, top, right, bottom) in zip(weights, corners, strict=True):
        area = heat[top : max(bottom, top + 1), left : max(right, left + 1)]
        np.maximum(area, weight, out=area)  # the strongest box at each pixel: many boxes overlap
    return heat
