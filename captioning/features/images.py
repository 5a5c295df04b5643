"""Reading photographs: an upright 8-bit RGB image of any file that people photograph in, or a clear error.

Grey, palette, CMYK, 16-bit, floating-point and transparent images are converted; the EXIF orientation is
applied. A truncated file is refused: Pillow could fill the rest with grey, but then its features would look
valid and be wrong. Damaged metadata costs no picture whose pixels are whole. Formats that people do not
photograph in are not tried, so that no file can start Ghostscript.

Memory: a file of more than `MAX_PIXELS` or `MAX_BYTES` is refused before it is decoded. Reading takes up to
13 bytes a pixel, with transparency or floating-point values up to 17 (2 GB for the largest picture), and
twice the size of the file where its metadata is damaged.
"""

import hashlib
import logging
import os
import stat
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from captioning.errors import InputError
from captioning.features.file_kinds import HEAD, describe_content
from captioning.features.metadata import without_metadata
from captioning.vocabulary import printable

log = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "HEIF")
MAX_PIXELS = 120_000_000  # 12,000 × 9,000 is the largest that many telephones take
MAX_BYTES = 1 << 29
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Fingerprint(NamedTuple):
    """What tells one content of a picture file from another.

    size: in bytes.
    time: of the last change, in nanoseconds since 1970.
    digest: the first 8 bytes of the SHA-256 of the content, as a number.
    """

    size: int
    time: int
    digest: int


def read_image(path: str | Path) -> Image.Image:
    """Open an image as upright 8-bit RGB.

    A picture that turns out to be of one colour although its file holds more is logged as a warning.

    Raises:
        InputError: there is no such file, it is too large, or it is not a picture of which Pillow can read
            all.
    """
    with _opened(path) as file:
        return decode(file, path)


def read_fingerprinted(path: str | Path) -> tuple[Image.Image, Fingerprint]:
    """Open an image like `read_image`, with the fingerprint of the content that was read.

    Raises:
        InputError: see `read_image`.
    """
    with _opened(path) as file:
        state = os.fstat(file.fileno())
        image = decode(file, path)
        return image, Fingerprint(state.st_size, state.st_mtime_ns, digest(file))


def digest(file: IO[bytes]) -> int:
    """Compute the digest of a `Fingerprint` of an open file."""
    file.seek(0)
    content: Any = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]  # any binary file will do
    return int.from_bytes(content.digest()[:8], "little")


def _opened(path: str | Path) -> IO[bytes]:
    name = printable(path)
    try:
        state = os.stat(path)
        if stat.S_ISDIR(state.st_mode):
            raise InputError(f"{name}: a folder where one image is needed")
        # Opening a pipe would wait for its other end.
        if not stat.S_ISREG(state.st_mode):
            raise InputError(f"{name}: not a readable image (a pipe or device)")
        if state.st_size == 0:
            raise InputError(f"{name}: the file is empty (0 bytes)")
        if state.st_size > MAX_BYTES:
            raise InputError(
                f"{name}: {state.st_size / 1e9:.1f} GB are more than the {MAX_BYTES / 1e9:.1f} GB that are "
                "read; save the picture in a smaller size"
            )
        return open(path, "rb")
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: not a readable image ({_one_line(error)})") from error


def decode(file: IO[bytes], name: str | Path) -> Image.Image:
    """Read an open file like `read_image`.

    Args:
        file: binary, with a position that can be changed.
        name: for messages.

    Raises:
        InputError: see `read_image`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on metadata and on large pictures
        try:
            image, varies = _decode(file)
        except _TooLarge as error:
            raise InputError(f"{printable(name)}: {error}") from error
        except Exception as error:  # decoders raise whatever happens to them
            rescued = _decode_without_metadata(file)
            if rescued is None:
                reason = _one_line(error)
                raise InputError(f"{printable(name)}: not a readable image ({reason})") from error
            image, varies = rescued
    if varies or _is_constant(image) and _holds_more(file, image):
        log.warning(
            "%s: its file holds more, but the picture was read as one colour; look at it", printable(name)
        )
    return image


class _TooLarge(InputError):
    """A picture of more pixels than `MAX_PIXELS`."""


def _decode(file: IO[bytes], *, tiff_metadata: bool = True) -> tuple[Image.Image, bool]:
    """Return the RGB image, and whether it has lost the differences that the values in the file have."""
    file.seek(0)
    try:
        opened = Image.open(file, formats=registered_formats())
    except UnidentifiedImageError as error:
        file.seek(0)
        kind = describe_content(file.read(HEAD)) or f"none of the formats {', '.join(FORMATS)}"
        raise ValueError(kind) from error
    except Image.DecompressionBombError as error:
        raise _TooLarge(f"{error}; scale the picture down to {MAX_PIXELS:,} pixels") from error
    with opened as image:
        if image.width * image.height > MAX_PIXELS:
            raise _TooLarge(
                f"{image.width} × {image.height} pixels are more than the {MAX_PIXELS:,} that are read; "
                "scale the picture down"
            )
        if not tiff_metadata:
            # Pillow reads a TIFF file's metadata at the end of `load`, when all pixels are there.
            image.load_end = lambda: None  # type: ignore[method-assign]
        image.load()  # `open` alone reads only the header and misses truncation
        turned = upright(image)
        converted = to_rgb(turned)
        converted.info.clear()  # or whoever looks at its orientation would turn it again
        return converted, _is_constant(converted, int(_is_numeric(turned))) and _varies(turned)


def registered_formats() -> list[str]:
    """List those of `FORMATS` that this installation of Pillow has a decoder for."""
    return [name for name in FORMATS if _is_registered(name)]


def _is_registered(name: str) -> bool:
    # HEIF comes with the package pillow-heif, AVIF with most builds of Pillow.
    if name not in Image.OPEN:
        Image.init()
    return name in Image.OPEN


def _decode_without_metadata(file: IO[bytes]) -> tuple[Image.Image, bool] | None:
    """Decode the pixels alone; None where they are damaged too. The orientation is kept if possible."""
    file.seek(0)
    content = file.read()
    attempts = [without_metadata(content, keep_exif=keep_exif) for keep_exif in (True, False)]
    if content[:2] in (b"II", b"MM"):  # TIFF, where metadata and pixels are separated by reading alone
        attempts = [content]
    elif attempts[1] == content:
        return None
    for pixels in attempts:
        try:
            return _decode(BytesIO(pixels), tiff_metadata=False)
        except Exception:  # the first error is the one that is reported
            continue
    return None


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; damaged EXIF says nothing."""
    try:
        method = _TRANSPOSE.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF; Pillow raises half a dozen types
        method = None
    return image if method is None else image.transpose(method)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB; transparent pixels become white, and NaN and Inf black."""
    if _is_numeric(image):
        # Pillow's own conversion clips 16-bit values at 255, which turns such an image white.
        values = np.array(image, dtype=np.float32)
        values[~np.isfinite(values)] = 0
        white = 65535.0 if image.mode.startswith("I;16") else _guess_white(values)
        values.clip(0, white, out=values)
        values *= 255.0 / white
        image = Image.fromarray(values.astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _guess_white(values: np.ndarray) -> float:
    """Guess the value of white in an image of int32 or float32 pixels: 1, 255 or 65535."""
    # One pixel in a thousand may be anything: a single broken one would turn the rest black.
    largest = np.quantile(values, 0.999, method="lower") if values.size else 0.0
    return 1.0 if largest <= 1 else 255.0 if largest <= 255 else 65535.0


def _is_numeric(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _is_constant(image: Image.Image, tolerance: int = 0) -> bool:
    # A few pixels rule it out for nearly every picture.
    few = image.resize((min(16, image.width), min(16, image.height)), Image.Resampling.NEAREST)
    return _contrast(few) <= tolerance and _contrast(image) <= tolerance


def _varies(image: Image.Image) -> bool:
    """Whether the values in the file differ, before they are converted."""
    if _is_numeric(image):
        values = np.asarray(image, dtype=np.float32)
        finite = values[np.isfinite(values)]
        return finite.size > 0 and bool(finite.min() < finite.max())
    return _contrast(image) > 0


def _contrast(image: Image.Image) -> float:
    """Return the largest difference between two pixels, in the channel where it is largest."""
    extrema: Any = image.getextrema()  # a pair, or one for each channel
    return max(high - low for low, high in (extrema if isinstance(extrema[0], tuple) else [extrema]))


def _holds_more(file: IO[bytes], image: Image.Image) -> bool:
    """Whether the file of a picture of one colour is too large for that."""
    file.seek(0)
    content = without_metadata(file.read(1 << 22), keep_exif=False)
    # One colour, repeated, compresses to next to nothing in every format.
    return len(zlib.compress(content, 1)) > 1024 + image.width * image.height // 20


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()) or type(error).__name__)
