"""Whatever a user hands over as a picture becomes upright 8-bit RGB, or a clear error.

Paths, the bytes of a file, open files, PIL images of any mode, arrays (H, W) or (H, W, 1 | 3 | 4) and torch
tensors, which may also have their channels first. Files are read by `read_image`; here only what comes
from memory is converted.
"""

import io
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from captioning.errors import InputError
from captioning.features.file_kinds import HEAD, describe_content, is_url
from captioning.features.images import decode, read_image, to_rgb, upright

ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | Any

THUMBNAIL = 640  # pixels of the longer side of a picture that came without a file, kept to be shown
MAX_BYTES = 1 << 28  # of a picture that comes out of a pipe, which has no size to ask for

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_NEEDED = (
    "a picture is a path, the bytes of a file, an open file, a PIL image, or an array (H, W) or (H, W, 1|3|4)"
)


def is_one_image(source: Any) -> bool:
    """Tell a single picture from a collection of them, such as a list or an array (B, H, W, 3)."""
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)):
        return True
    if hasattr(source, "read") or not isinstance(source, Iterable):
        return True
    return hasattr(source, "__array__") and len(getattr(source, "shape", ())) in (2, 3)


def to_image(source: ImageSource, name: str = "the picture") -> Image.Image:
    """Convert any kind of picture to upright 8-bit RGB.

    Args:
        source: see above. Float values reach from 0 to 1, or from 0 to 255.
        name: of a picture that comes without a file name, for messages.

    Raises:
        InputError: it cannot be read, or is no picture.
    """
    if isinstance(source, Image.Image):
        return _from_pil(source, name)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(source), name)
    if hasattr(source, "read"):
        return _from_file(source, name)
    if isinstance(source, torch.Tensor):
        return _from_tensor(source, name)
    if hasattr(source, "__array__"):
        return _from_array(np.asarray(source), name)
    raise InputError(f"{name} is of type {type(source).__name__}; {_NEEDED}")


def reread(source: ImageSource, image: Image.Image) -> str | os.PathLike[str] | bytes:
    """Return what `to_image` can read again later: the path, or else a small JPEG.

    Args:
        source: what was given.
        image: what `to_image` made of it.
    """
    # A pipe cannot be read a second time.
    if isinstance(source, (str, os.PathLike)) and not Path(source).is_fifo():
        return source
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _from_path(path: str) -> Image.Image:
    if is_url(path) and not os.path.exists(path):
        raise InputError(f"{path}: this is a URL; download it first, then give the file")
    if Path(path).is_fifo():  # <(curl …), or /dev/stdin after a pipe
        with open(path, "rb") as pipe:
            return _from_file(pipe, path)
    try:
        return read_image(path)
    except InputError as error:
        try:
            with open(path, "rb") as file:
                kind = describe_content(file.read(HEAD))
        except IsADirectoryError:
            listed = f"sorted(pathlib.Path({path!r}).glob('*.jpg'))"
            raise InputError(f"{error}; give its images as a list, such as {listed}") from None
        except (OSError, ValueError):
            raise error from None
        if kind is None:
            raise
        raise InputError(f"{path}: this is {kind}") from error


def _from_file(file: BinaryIO, name: str) -> Image.Image:
    name = str(getattr(file, "name", None) or name)
    with suppress(AttributeError, OSError):  # what cannot be rewound is read from where it stands
        file.seek(0)  # as Pillow does, so that a file that has been read before is read again
    content = file.read(MAX_BYTES + 1)
    if not isinstance(content, bytes):
        raise InputError(f"{name} is open as text; open it with mode 'rb'")
    if len(content) > MAX_BYTES:
        raise InputError(f"{name} holds more than {MAX_BYTES >> 20} MiB; give a smaller picture")
    return _from_bytes(content, name)


def _from_bytes(content: bytes, name: str) -> Image.Image:
    if not content:
        raise InputError(f"{name} is empty (0 bytes)")
    try:
        return decode(io.BytesIO(content), name)
    except InputError as error:
        if kind := describe_content(content[:HEAD]):
            raise InputError(f"{name}: this is {kind}") from error
        raise


def _from_pil(image: Image.Image, name: str) -> Image.Image:
    try:
        return to_rgb(upright(image))
    except Exception as error:  # an image that was opened but not read yet may be damaged
        raise InputError(f"{name}: not a readable image ({error})") from error


def _from_tensor(tensor: torch.Tensor, name: str) -> Image.Image:
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy has no bfloat16
    if tensor.dim() == 3 and tensor.shape[0] in _CHANNELS:
        tensor = tensor.permute(1, 2, 0)  # (H, W, C), as torchvision has them the other way round
    return _from_array(tensor.numpy(), name)


def _from_array(values: np.ndarray, name: str) -> Image.Image:
    """Convert an array (H, W) or (H, W, C) of numbers."""
    shape = values.shape
    if values.ndim == 2:
        values = values[..., None]  # (H, W, 1)
    if values.ndim != 3 or values.shape[2] not in _CHANNELS or 0 in shape:
        raise InputError(f"{name} is an array of shape {shape}; needed is (H, W) or (H, W, 1|3|4)")
    pixels = _to_bytes(values, name)
    return to_rgb(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def _to_bytes(values: np.ndarray, name: str) -> np.ndarray:
    """Scale numbers to bytes; their type or range tells which value is white."""
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.dtype == np.uint16:
        return (values // 257).astype(np.uint8)
    if values.dtype.kind not in "iuf":
        raise InputError(f"{name} is an array of {values.dtype}; needed are numbers")
    is_float = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype(np.float32), nan=0.0, posinf=np.nan, neginf=0.0)
    largest, smallest = float(np.nanmax(values, initial=0)), float(np.nanmin(values, initial=0))
    # Resizing overshoots: a range of 0 to 1 may come as -0.1 to 1.1, one of 0 to 255 as -20 to 275. Values
    # from -2 to 3 have been normalised for some network.
    white = 1.0 if largest <= 10 and is_float else 255.0
    if smallest < -0.2 * white or largest > 1.5 * white:
        raise InputError(
            f"{name} has values from {smallest:.4g} to {largest:.4g}; needed are 0 to 1 or 0 to 255, before "
            "any normalisation"
        )
    return (np.nan_to_num(values, nan=white).clip(0, white) * (255.0 / white)).round().astype(np.uint8)
