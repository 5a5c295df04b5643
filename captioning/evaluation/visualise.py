"""Figures of attention: the image once per word, with that word's attention laid over it.

Weights of each word are scaled to their own minimum and maximum for display (of boxes to their maximum), so a
diffuse map looks as bright as a sharp one: brightness must not be compared between words (flaw S13 of the
post). Grids are H × W cells, row by row from the top left.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from captioning.errors import InputError
from captioning.evaluation.fonts import find_font, warn_that_words_are_numbered
from captioning.features.grid import grid_margin
from captioning.files import atomic_write

COLUMNS = 4  # panels in a row of the figure
NUM_OUTLINED = 3  # boxes that get an outline, those with the largest weights
MAX_SIDE = 512  # pixels of a panel's longer side
PICTURE_FORMATS = (".png", ".jpg", ".jpeg", ".pdf", ".svg", ".tif", ".tiff", ".webp")

_DARKEST = 0.30  # brightness where the weight is smallest
_WARM = np.array([255.0, 190.0, 60.0], dtype=np.float32)  # the colour of attention
_RINGS = 2  # cells added around a grid, as many as bicubic interpolation reads


def attention_figure(
    image: Image.Image,
    words: Sequence[str],
    attention: np.ndarray,
    *,
    boxes: np.ndarray | None = None,
    grid: tuple[int, int] | None = None,
    image_size: Sequence[int] | None = None,
    title: str = "",
) -> Any:
    """Draw the image, and then once per word the image with that word's attention.

    The font is one of the machine that has the characters of the words. Where there is none, a warning says
    so, and the words are numbered.

    Args:
        image: RGB, any size; its aspect ratio is kept.
        words: T words.
        attention: (T, R) weights of each word over the regions.
        boxes: (R, 4) x1 y1 x2 y2 as fractions of the image, for detector regions.
        grid: H and W of the cells where there are no boxes; None takes a square grid.
        image_size: H and W in pixels of the network's input, to place the grid; None stretches it.
        title: above all panels.

    Returns:
        a matplotlib Figure; `close` it after use.

    Raises:
        ValueError: R regions that neither fill the grid nor have boxes.
    """
    font = find_font("".join([title, *words]))
    if font is None:
        warn_that_words_are_numbered()
        words, title = [str(number) for number in range(1, len(words) + 1)], ""
    margin = (0.0, 0.0)
    if boxes is None:
        grid = grid or _square(attention.shape[1])
        if image_size is not None:
            margin = grid_margin(image_size, grid)
    image = image.copy()
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    figure, axes = _panels(image, len(words) + 1)
    axes[0].imshow(image)
    axes[0].set_title("picture", fontsize=11, color="grey")
    for axis, word, weights in zip(axes[1:], words, attention, strict=False):
        axis.set_title(word, font=font, fontsize=15)
        axis.imshow(overlay(image, weights, boxes=boxes, grid=grid, margin=margin))
    if title:
        figure.suptitle(title, font=font, fontsize=15)
    return figure


def _panels(image: Image.Image, number: int) -> tuple[Any, Any]:
    """Make a figure with at least that many panels of the image's shape, and list its axes."""
    from matplotlib.figure import Figure

    num_rows = math.ceil(number / COLUMNS)
    panel_height = 2.6 * image.height / image.width + 0.45  # inches; 0.45 for the word
    figure = Figure(figsize=(2.6 * COLUMNS, num_rows * min(panel_height, 4.0) + 0.4), layout="constrained")
    axes = figure.subplots(num_rows, COLUMNS, squeeze=False).ravel()
    for axis in axes:
        axis.axis("off")
    return figure, axes


def overlay(
    image: Image.Image,
    weights: np.ndarray,
    *,
    boxes: np.ndarray | None = None,
    grid: tuple[int, int] | None = None,
    margin: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """Brighten the regions with large weights and darken the rest: (H, W, 3) bytes.

    Args:
        image: RGB.
        weights: (R,) attention of one word.
        boxes: see `attention_figure`.
        grid: see `attention_figure`.
        margin: see `features.grid.grid_margin`.

    Raises:
        ValueError: see `attention_figure`.
    """
    heat = heat_map(image.size, weights, boxes=boxes, grid=grid, margin=margin)
    if boxes is not None:
        image = _outline(image, boxes[np.argsort(-weights)[:NUM_OUTLINED]])
    pixels = np.asarray(image, dtype=np.float32)
    lit = pixels * (_DARKEST + (1 - _DARKEST) * heat[..., None]) + _WARM * 0.22 * heat[..., None]
    return lit.clip(0, 255).astype(np.uint8)


def heat_map(
    size: tuple[int, int],
    weights: np.ndarray,
    *,
    boxes: np.ndarray | None = None,
    grid: tuple[int, int] | None = None,
    margin: tuple[float, float] = (0.0, 0.0),
) -> np.ndarray:
    """Spread the weights of the regions over an image: (H, W), the largest is 1.

    Args:
        size: width and height of the image in pixels.
        weights: (R,) attention of one word.
        boxes: see `attention_figure`.
        grid: see `attention_figure`.
        margin: see `features.grid.grid_margin`.

    Raises:
        ValueError: see `attention_figure`.
    """
    if boxes is None:
        heat = _grid_heat(weights, size, grid, margin)
        heat = heat - heat.min()
    else:
        # Boxes leave most of the image at 0, so their minimum is not subtracted.
        heat = _box_heat(weights, boxes, size)
    return heat / max(float(heat.max()), 1e-8)


def picture_paths(target: str, images: Sequence[Path]) -> dict[Path, Path]:
    """Choose the file of each image's figure, and create the folder: one file, or a folder of PNG files.

    Args:
        target: a file name where there is one image, or a folder.
        images: paths; images of the same name get different files.

    Raises:
        InputError: one file for several images, or a suffix that is not of `PICTURE_FORMATS`.
    """
    path = Path(target)
    if len(images) == 1 and not (path.is_dir() or target.endswith("/")):
        if path.suffix.lower() not in PICTURE_FORMATS:
            raise InputError(
                f"picture={target} must end in one of {', '.join(PICTURE_FORMATS)}, or be a folder"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        return {images[0]: path}
    if path.is_file() or path.suffix.lower() in PICTURE_FORMATS:
        raise InputError(f"picture={target} names one file for {len(images)} images; give a folder")
    path.mkdir(parents=True, exist_ok=True)
    chosen: dict[Path, Path] = {}
    # Names in lower case, as some file systems compare them, with the last number tried.
    taken: dict[str, int] = {}
    for image in dict.fromkeys(images):
        name = image.stem
        if name.casefold() in taken:
            name = f"{image.parent.name}_{image.stem}"
        while name.casefold() in taken:
            taken[image.stem.casefold()] += 1
            name = f"{image.stem}_{taken[image.stem.casefold()]}"
        taken[name.casefold()] = 1
        chosen[image] = path / f"{name}.png"
    return chosen


def save(figure: Any, path: str | Path) -> None:
    """Write the figure to a file; its suffix is one of `PICTURE_FORMATS`."""
    path = Path(path)
    with atomic_write(path) as temporary:
        # The temporary name has another suffix, so the format is given.
        figure.savefig(temporary, dpi=100, format=path.suffix.removeprefix(".").lower())


def close(figure: Any) -> None:
    """Free the figure's memory."""
    figure.clear()


def _grid_heat(
    weights: np.ndarray, size: tuple[int, int], grid: tuple[int, int] | None, margin: tuple[float, float]
) -> np.ndarray:
    height, width = grid or _square(len(weights))
    if height * width != len(weights):
        raise ValueError(f"{len(weights)} regions do not fill a grid of {height} × {width} cells")
    padded = weights.reshape(height, width)
    for axis in (0, 1):
        around = [(_RINGS, _RINGS) if axis == side else (0, 0) for side in (0, 1)]
        # Where the image goes on beyond the grid, empty cells let the light fade; else the border continues.
        padded = np.pad(padded, around, mode="constant" if margin[axis] else "edge")
    # The window of the padded grid, in cells, that the image covers: left, top, right, bottom.
    top, bottom = _window(height, margin[0])
    left, right = _window(width, margin[1])
    cells = Image.fromarray(padded.astype(np.float32))
    heat = cells.resize(size, Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    return np.asarray(heat).clip(0)  # bicubic interpolation undershoots


def _square(num_regions: int) -> tuple[int, int]:
    side = math.isqrt(num_regions)
    if side * side != num_regions:
        raise ValueError(f"{num_regions} regions are no square grid; pass their grid=(H, W) or their boxes")
    return side, side


def _window(num_cells: int, margin: float) -> tuple[float, float]:
    covered = num_cells / (1 - 2 * margin)  # cells that would cover the image
    start = _RINGS - margin * covered
    return start, start + covered


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
        np.maximum(area, weight, out=area)  # boxes overlap, so each pixel takes its largest weight
    return heat
