"""Reading photographs: any file that Pillow opens becomes an upright 8-bit RGB image, or a clear error.

Grey, palette, CMYK, 16-bit and transparent images are converted; the EXIF orientation is applied. A truncated
file is refused. Pillow could fill the rest with grey, but then its features would look valid and be wrong.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from captioning.errors import InputError


def read_image(path: str | Path) -> Image.Image:
    """Open an image as upright 8-bit RGB.

    Raises:
        InputError: there is no such file, or Pillow cannot read all of it.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty (0 bytes)")
        with Image.open(path) as image:
            image.load()  # `open` alone reads only the header and misses truncation
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable image ({error})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        # Pillow's own conversion clips 16-bit values at 255, which turns such an image white.
        values = np.asarray(image, dtype=np.float32)
        white = 65535.0 if image.mode.startswith("I;16") else _guess_white(float(values.max(initial=0)))
        image = Image.fromarray((values.clip(0, white) * (255.0 / white)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _guess_white(largest: float) -> float:
    """Guess the value of white in an image of int32 or float32 pixels: 1, 255 or 65535."""
    return 1.0 if largest <= 1 else 255.0 if largest <= 255 else 65535.0
