"""Mutated pictures of many formats: read, or refused with a reason, and never a tenth of a picture as a whole one."""

import io
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cache

import numpy as np
from PIL import Image, ImageOps

from captioning.errors import InputError
from captioning.features import read_image
from tests.faults.children import in_children
from tests.faults.settings import Settings
from tests.faults.tally import Outcome, Tally

SIZE = (56, 40)  # width, height


def scene() -> Image.Image:
    """A picture with edges, gradients and noise, always the same."""
    generator = np.random.default_rng(0)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    pixels = np.stack([x * 4, y * 6, (x + y) * 2], -1) + generator.integers(0, 30, (*SIZE[::-1], 3))
    pixels[8:20, 10:30] = (200, 30, 40)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def exif(order: str = "I") -> Image.Exif:
    made = Image.Exif()
    made.endian = "<" if order == "I" else ">"
    made[0x0112], made[0x010F], made[0x0132] = 6, "a camera", "2024:01:01 00:00:00"
    made.get_ifd(0x8769)[0x9003] = "2024:01:01 00:00:00"
    return made


def _save(mode: str = "RGB", **options: object) -> bytes:
    image, buffer = scene(), io.BytesIO()
    image = image.quantize(32) if mode == "P" else image.convert(mode)
    image.save(buffer, **options)
    return buffer.getvalue()


def _save_values(values: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, **options)
    return buffer.getvalue()


@cache
def formats() -> Mapping[str, bytes]:
    """A sound file of every format."""
    grey = np.asarray(scene().convert("L"))
    frames = {"save_all": True, "append_images": [scene().rotate(90), scene().rotate(180)]}
    alpha = scene().convert("RGBA")
    alpha.putalpha(Image.fromarray(grey))
    transparent = io.BytesIO()
    alpha.save(transparent, "PNG")
    found = {
        "jpeg": _save(format="JPEG"),
        "jpeg progressive": _save(format="JPEG", progressive=True),
        "jpeg cmyk": _save("CMYK", format="JPEG"),
        "jpeg grey": _save("L", format="JPEG"),
        "jpeg exif": _save(format="JPEG", exif=exif()),
        "jpeg exif big-endian": _save(format="JPEG", exif=exif("M")),
        "jpeg icc": _save(format="JPEG", icc_profile=b"\0" * 3000),
        "mpo": _save(format="MPO", **frames),
        "png": _save(format="PNG"),
        "png palette": _save("P", format="PNG", transparency=0),
        "png alpha": transparent.getvalue(),
        "png 16 bit": _save_values((grey.astype(np.uint16) * 257), format="PNG"),
        "png exif": _save(format="PNG", exif=exif()),
        "png text": _save(format="PNG", pnginfo=_text_chunks()),
        "apng": _save(format="PNG", **frames),
        "webp": _save(format="WEBP"),
        "webp lossless": _save("RGBA", format="WEBP", lossless=True),
        "webp exif": _save(format="WEBP", exif=exif()),
        "webp animated": _save(format="WEBP", **frames),
        "gif": _save("P", format="GIF"),
        "gif animated": _save("P", format="GIF", **frames),
        "bmp": _save(format="BMP"),
        "bmp palette": _save("P", format="BMP"),
        "tiff": _save(format="TIFF"),
        "tiff lzw": _save(format="TIFF", compression="tiff_lzw"),
        "tiff jpeg": _save(format="TIFF", compression="jpeg"),
        "tiff deflate": _save("RGBA", format="TIFF", compression="tiff_adobe_deflate"),
        "tiff 16 bit": _save_values(grey.astype(np.uint16) * 257, format="TIFF"),
        "tiff float": _save_values(grey.astype(np.float32) / 255, format="TIFF"),
        "tiff exif": _save(format="TIFF", exif=exif()),
        "avif": _save(format="AVIF", speed=10),
        "jpeg 2000": _save(format="JPEG2000"),
        "ppm": _save(format="PPM"),
        "pgm": _save("L", format="PPM"),
        "tga": _save(format="TGA", compression="tga_rle"),
        "ico": _save(format="ICO"),
        "pcx": _save(format="PCX"),
        "sgi": _save(format="SGI"),
        "dds": _save(format="DDS"),
        "qoi": _save(format="QOI"),
        "eps": _save(format="EPS"),
    }
    return found


def _text_chunks() -> object:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("a", "b" * 100, zip=True)
    info.add_itxt("c", "d" * 100, zip=True)
    return info


Mutation = Callable[[bytearray, random.Random], bytes]


def _position(content: bytearray, generator: random.Random) -> int:
    """Headers are short and decide much: half of the positions lie in the first 200 bytes."""
    return generator.randrange(min(200, len(content)) if generator.random() < 0.5 else len(content))


def flip_bits(content: bytearray, generator: random.Random) -> bytes:
    for _ in range(generator.choice((1, 1, 2, 8, 40))):
        content[_position(content, generator)] ^= 1 << generator.randrange(8)
    return bytes(content)


def set_bytes(content: bytearray, generator: random.Random) -> bytes:
    for _ in range(generator.choice((1, 2, 4))):
        content[_position(content, generator)] = generator.choice((0, 1, 0x7F, 0x80, 0xFF))
    return bytes(content)


def set_number(content: bytearray, generator: random.Random) -> bytes:
    size, start = generator.choice((2, 4)), _position(content, generator)
    value = generator.choice(
        (0, 1, (1 << 8 * size) - 1, (1 << 8 * size - 1) - 1, 1 << 8 * size - 1, 30_000, 65_000)
    )
    content[start : start + size] = value.to_bytes(size, generator.choice(("little", "big")))
    return bytes(content)


def truncate(content: bytearray, generator: random.Random) -> bytes:
    return bytes(content[: generator.randrange(len(content))])


def cut_out(content: bytearray, generator: random.Random) -> bytes:
    start = _position(content, generator)
    del content[start : start + generator.choice((1, 2, 7, 64, 500))]
    return bytes(content)


def zero(content: bytearray, generator: random.Random) -> bytes:
    start, length = _position(content, generator), generator.choice((4, 32, 512))
    content[start : start + length] = bytes(len(content[start : start + length]))
    return bytes(content)


def insert(content: bytearray, generator: random.Random) -> bytes:
    start = _position(content, generator)
    content[start:start] = generator.randbytes(generator.choice((1, 4, 100)))
    return bytes(content)


def repeat(content: bytearray, generator: random.Random) -> bytes:
    start, length = _position(content, generator), generator.choice((8, 64, 300))
    content[start:start] = content[start : start + length] * generator.choice((1, 3, 50))
    return bytes(content)


def swap(content: bytearray, generator: random.Random) -> bytes:
    first, second = sorted((_position(content, generator), _position(content, generator)))
    return bytes(content[:first] + content[second:] + content[first:second])


def splice(content: bytearray, generator: random.Random) -> bytes:
    other = generator.choice(list(formats().values()))
    start = _position(content, generator)
    return bytes(content[:start]) + other[generator.randrange(len(other)) :]


def append(content: bytearray, generator: random.Random) -> bytes:
    return bytes(content) + generator.randbytes(generator.choice((1, 100, 5000)))


def break_exif(content: bytearray, generator: random.Random) -> bytes:
    """Change only the EXIF block, which says nothing of the pixels but which side is up."""
    start, end = exif_block(bytes(content))
    for _ in range(generator.choice((1, 2, 8))):
        content[generator.randrange(start, end)] = generator.choice((0, 1, 0xFF, generator.randrange(256)))
    if content.startswith(b"\x89PNG"):  # the chunk's own checksum holds
        content[end : end + 4] = zlib.crc32(content[start - 4 : end]).to_bytes(4, "big")
    return bytes(content)


def exif_block(content: bytes) -> tuple[int, int]:
    """Return where the EXIF data begin and end; the same position twice where there are none."""
    for marker, length_at, order in ((b"eXIf", -4, "big"), (b"EXIF", 4, "little")):
        if (at := content.find(marker)) > 0 and not content.startswith(b"\xff\xd8"):
            start = at + 4 if marker == b"eXIf" else at + 8
            at += length_at
            return start, start + int.from_bytes(content[at : at + 4], order)
    if content.startswith(b"\xff\xd8") and (at := content.find(b"Exif\0\0")) > 0:
        return at + 6, at - 2 + int.from_bytes(content[at - 2 : at], "big")
    return 0, 0


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, set_bytes, set_number, truncate, cut_out, zero, insert, repeat, swap, splice, append, break_exif,
)  # fmt: skip


def mutate(number: int, generator: random.Random) -> tuple[str, Mutation, bytes]:
    """Draw a format and a mutation; every format gets the same number of cases."""
    name = list(formats())[number % len(formats())]
    content = bytearray(formats()[name])
    choices = [m for m in MUTATIONS if m is not break_exif or exif_block(bytes(content))[1]]
    mutation = generator.choice(choices)
    return name, mutation, mutation(content, generator)


def run(settings: Settings) -> Iterator[Tally]:
    """Read every mutated picture as the program does."""
    folder = settings.room("pictures")

    def check(number: int) -> tuple[Outcome, str]:
        name, mutation, content = mutate(number, settings.generator("pictures", number))
        path = folder / f"{name.replace(' ', '_')}.img"
        path.write_bytes(content)
        try:
            image = read_image(path)
        except InputError as error:
            if mutation is break_exif:
                return Outcome.LOST, f"a sound picture is refused for its EXIF: {error}"
            return Outcome.REPORTED, str(error)
        if image.mode != "RGB" or 0 in image.size:
            return Outcome.LOST, f"comes as {image.mode}, {image.size}"
        if mutation in (truncate, break_exif) and not is_shown_by(image, name):
            return Outcome.LOST, "comes as another picture, and nothing says so"
        return Outcome.SURVIVED, ""

    def describe(number: int) -> str:
        name, mutation, _ = mutate(number, settings.generator("pictures", number))
        return f"{number} {name}, {mutation.__name__}"

    originals(folder)
    for number, name in enumerate(formats()):
        print(f"  {name}", end=", " if number % 12 < 11 else "\n")
    print()
    cases = settings.cases(20_500)
    yield Tally("mutated pictures").take(in_children(cases, check, name=describe))


_ORIGINALS: dict[str, list[bytes]] = {}


def originals(folder: object) -> None:
    """Read every sound picture, upright and in the seven other ways to hold it."""
    for name, content in formats().items():
        path = folder / "original.img"  # type: ignore[operator]
        path.write_bytes(content)
        try:
            image = read_image(path)
        except InputError:
            continue  # a format that is refused as such
        turned = [image.transpose(method) for method in Image.Transpose]
        _ORIGINALS[name] = [
            f"{i.size}".encode() + i.tobytes() for i in (image, ImageOps.exif_transpose(image), *turned)
        ]


def is_shown_by(image: Image.Image, name: str) -> bool:
    """Whether an image is the sound picture of a format, however it is held."""
    return f"{image.size}".encode() + image.tobytes() in _ORIGINALS.get(name, [])
