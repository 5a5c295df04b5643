"""Photographs of every kind are read, and whatever is wrong with a file becomes one line."""

import logging
import os
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captioning.errors import InputError
from captioning.features import images as images_module
from captioning.features import read_image, to_image
from captioning.features.images import Fingerprint, decode, read_fingerprinted

SUFFIXES = ("jpg", "png", "webp", "gif", "bmp", "tif", "avif", "jp2", "ppm")
PNG = b"\x89PNG\r\n\x1a\n"


def ramp() -> Image.Image:
    """From black at the left to white at the right: 40 × 30 pixels."""
    return Image.fromarray(np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))).convert("RGB")


def content_of(image: Image.Image, suffix: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, Image.registered_extensions()[f".{suffix}"], **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes, checksum: int | None = None) -> bytes:
    """A PNG chunk."""
    right = zlib.crc32(name + content)
    return (
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", right if checksum is None else checksum)
    )


def png(width: int, height: int, pixels: bytes, bits: int = 8, *extra: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return PNG + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def jpeg_with_exif(exif: bytes) -> bytes:
    plain, segment = content_of(ramp(), "jpg"), b"Exif\0\0" + exif
    return plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]


def tiff(*extra: tuple[int, int, int, int], compressed: bool = False) -> bytes:
    """The ramp as TIFF with further tags: (tag, type, count, value)."""
    pixels = np.asarray(ramp()).tobytes()
    pixels = zlib.compress(pixels) if compressed else pixels
    tags = [
        (256, 4, 1, 40),
        (257, 4, 1, 30),
        (258, 3, 1, 8),
        (259, 3, 1, 8 if compressed else 1),
        (262, 3, 1, 2),
    ]
    tags += [(273, 4, 1, 8), (277, 3, 1, 3), (278, 4, 1, 30), (279, 4, 1, len(pixels)), *extra]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + bytes(4)


class TestConversion:
    """Every kind of image file that people have."""

    def save(self, tmp_path: Path, mode: str, suffix: str, **options: object) -> Path:
        grey = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))
        image = Image.fromarray(grey)
        if mode == "I;16":
            image = Image.fromarray(grey.astype(np.uint16) * 257)
        elif mode != "L":
            image = image.convert("RGB").convert(mode)
        path = tmp_path / f"{mode.replace(';', '')}{suffix}"
        image.save(path, **options)
        return path

    @pytest.mark.parametrize(
        ("mode", "suffix"),
        [("L", ".jpg"), ("CMYK", ".jpg"), ("P", ".png"), ("P", ".gif"), ("I;16", ".png"), ("I;16", ".tif"),
         ("RGBA", ".png"), ("LA", ".png"), ("1", ".png"), ("RGB", ".webp")],
    )  # fmt: skip
    def test_a_ramp_of_any_mode_becomes_the_same_rgb_ramp(
        self, tmp_path: Path, mode: str, suffix: str
    ) -> None:
        image = read_image(self.save(tmp_path, mode, suffix))
        assert image.mode == "RGB" and image.size == (40, 30)
        pixels = np.asarray(image).astype(float).mean((0, 2))
        assert pixels[:8].mean() < 60 and pixels[-8:].mean() > 195 and 90 < pixels.mean() < 165

    def test_transparent_pixels_become_white(self, tmp_path: Path) -> None:
        Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
        assert np.asarray(read_image(tmp_path / "clear.png")).min() == 255

    def test_exif_orientation_is_applied(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90 degrees
        Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
        image = read_image(tmp_path / "turned.jpg")
        assert image.size == (20, 40)
        assert not image.getexif(), "nobody may turn it again"

    def test_a_truncated_file_is_refused(self, tmp_path: Path) -> None:
        path = self.save(tmp_path, "RGB", ".jpg")
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(InputError, match="not a readable image"):
            read_image(path)


class TestDamage:
    """Whatever a decoder raises is one line, and nothing but damaged pixels costs a picture."""

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_any_damage_is_one_line_or_a_picture(self, tmp_path: Path, suffix: str) -> None:
        generator, good = np.random.default_rng(0), content_of(ramp(), suffix)
        path = tmp_path / f"q.{suffix}"
        for _ in range(60):
            content = bytearray(good)
            for position in generator.integers(0, len(content), generator.integers(1, 6)):
                content[position] = generator.integers(256)
            path.write_bytes(content[: generator.integers(1, 2 * len(content))])
            try:
                assert read_image(path).mode == "RGB"
            except InputError as error:
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)

    def test_an_error_of_any_type_is_one_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "a.jpg").write_bytes(content_of(ramp(), "jpg"))
        for error in (RuntimeError("one\ntwo\x1b[31m"), MemoryError(), RecursionError(), struct.error("odd")):

            def fail(*_: object, error: Exception = error, **__: object) -> None:
                raise error

            monkeypatch.setattr(images_module.Image, "open", fail)
            with pytest.raises(InputError, match=r"a.jpg: not a readable image \((one two\\x1b|Mem|Rec|odd)"):
                read_image(tmp_path / "a.jpg")

    @pytest.mark.parametrize("exif", [b"II*\0", b"", b"II", b"MM\0*\0\0\0\x08\xff\xff", b"\xff" * 40])
    def test_bad_exif_costs_no_picture(self, tmp_path: Path, exif: bytes) -> None:
        files = {
            "a.jpg": jpeg_with_exif(exif),
            "a.png": png(2, 1, b"\0" + bytes(range(6)), 8, chunk(b"eXIf", exif)),
            "b.png": png(2, 1, b"\0" + bytes(range(6)), 8, chunk(b"eXIf", exif, checksum=1)),
            "c.png": png(
                2, 1, b"\0" + bytes(range(6)), 8, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1", checksum=1)
            ),
            "a.webp": content_of(ramp(), "webp", exif=b"Exif\0\0" + exif),
        }
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
            assert np.asarray(read_image(tmp_path / name)).max() > 0

    @pytest.mark.parametrize("compressed", [False, True])
    def test_bad_tags_cost_no_tiff(self, tmp_path: Path, compressed: bool) -> None:
        bad = {"exif": (34665, 4, 1, 99999), "gps": (34853, 2, 1, 3), "xmp": (700, 7, 100, 9999999)}
        for name, tag in bad.items():
            (tmp_path / name).write_bytes(tiff((274, 3, 1, 6), tag, compressed=compressed))
            assert read_image(tmp_path / name).size == (30, 40), name

    def test_orientation_is_kept_where_other_metadata_is_damaged(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6
        good = chunk(b"eXIf", exif.tobytes()[6:])
        (tmp_path / "a.png").write_bytes(png(2, 1, b"\0" + bytes(range(6)), 8, good, chunk(b"tEXt", b"a", 1)))
        assert read_image(tmp_path / "a.png").size == (1, 2)
        # Whole EXIF with a tag that cannot be written again.
        exif[0x8769] = {0x9000: b"0220"}
        (tmp_path / "a.jpg").write_bytes(jpeg_with_exif(exif.tobytes()[6:-3]))
        assert read_image(tmp_path / "a.jpg").size == (30, 40)

    def test_empty_missing_and_foreign_files_are_refused_by_name(self, tmp_path: Path) -> None:
        contents = {
            "empty": (b"", "the file is empty \\(0 bytes\\)"),
            "text": (b"hello", "not a readable image \\(none of the formats JPEG, PNG"),
            "none": (None, "no such file"),
            "heic": (b"\0\0\0\x18ftypheic", "not a readable image \\(a HEIC photograph"),
        }
        for name, (content, message) in contents.items():
            if content is not None:
                (tmp_path / f"{name}.jpg").write_bytes(content)
            with pytest.raises(InputError, match=f"{name}.jpg: {message}"):
                read_image(tmp_path / f"{name}.jpg")

    def test_a_file_that_would_start_ghostscript_is_not_tried(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").write_bytes(content_of(ramp(), "eps"))
        with pytest.raises(InputError, match="not a readable image .*PostScript"):
            read_image(tmp_path / "a.jpg")

    def test_folders_and_pipes_are_not_waited_for(self, tmp_path: Path) -> None:
        (tmp_path / "a.jpg").mkdir()
        os.mkfifo(tmp_path / "b.jpg")
        with pytest.raises(InputError, match="a.jpg: a folder where one image is needed$"):
            read_image(tmp_path / "a.jpg")
        with pytest.raises(InputError, match=r"needed; give its images as a list, such as sorted\(.*a.jpg'"):
            to_image(tmp_path / "a.jpg")
        with pytest.raises(InputError, match="b.jpg: not a readable image .a pipe or device"):
            read_image(tmp_path / "b.jpg")

    def test_names_cannot_write_to_the_terminal(self) -> None:
        with pytest.raises(InputError, match=r"^a\\x1b\[31m.jpg: no such file"):
            read_image("a\x1b[31m.jpg")
        with pytest.raises(InputError, match=r"^caf\\xe9.png: no such file"):
            read_image("caf\udce9.png")
        with pytest.raises(InputError, match=r"^a\\x00b: not a readable image"):
            read_image("a\0b")


class TestLimits:
    def test_too_many_pixels_are_refused_before_they_are_decoded(self, tmp_path: Path) -> None:
        for side, message in (
            (13_000, "13000 × 13000 pixels are more than the 120,000,000"),
            (60_000, "Image size"),
        ):
            (tmp_path / "a.png").write_bytes(png(side, side, b"\0"))
            with pytest.raises(InputError, match=f"a.png: {message}.*; scale the picture down"):
                read_image(tmp_path / "a.png")

    def test_a_picture_of_the_largest_size_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.png").write_bytes(content_of(ramp(), "png"))
        monkeypatch.setattr(images_module, "MAX_PIXELS", 40 * 30)
        assert read_image(tmp_path / "a.png").size == (40, 30)
        monkeypatch.setattr(images_module, "MAX_PIXELS", 40 * 30 - 1)
        with pytest.raises(InputError, match="40 × 30 pixels are more"):
            read_image(tmp_path / "a.png")

    def test_a_file_of_gigabytes_is_not_read(self, tmp_path: Path) -> None:
        with (tmp_path / "a.webp").open("wb") as file:
            file.write(content_of(ramp(), "webp"))
            file.truncate(3_000_000_000)  # without taking the space
        with pytest.raises(
            InputError, match=r"3.0 GB are more than the 0.5 GB that are read; save the picture"
        ):
            read_image(tmp_path / "a.webp")


class TestOneColour:
    """A picture that comes out as one colour although its file holds more is warned about."""

    def save_floats(self, path: Path, values: np.ndarray) -> Path:
        Image.fromarray(values.astype(np.float32)).save(path)
        return path

    def test_values_that_are_no_numbers_and_a_single_broken_one_are_ignored(self, tmp_path: Path) -> None:
        values = np.tile(np.linspace(0, 1, 40), (30, 1))
        values[3, 3], values[4, 4], values[5, 5], values[6, 6] = np.nan, np.inf, -np.inf, 1e30
        pixels = np.asarray(read_image(self.save_floats(tmp_path / "a.tif", values)))
        assert pixels.max() == 255 and 120 < pixels.mean() < 135

    def varied(self, path: Path, kind: str) -> Path:
        values = np.random.default_rng(0).random((30, 40))
        if kind == "small floats":
            self.save_floats(path, values * 1e-3)
        elif kind == "negative floats":
            self.save_floats(path, values - 2)
        elif kind == "8 bits in 16":
            Image.fromarray((values * 255).astype(np.uint16)).save(path, "PNG")
        elif kind == "low bytes of 16-bit colours":
            rows = (values.repeat(6, 1) * 255).astype(np.uint8)
            rows[:, ::2] = 0
            path.write_bytes(png(40, 30, b"".join(b"\0" + row.tobytes() for row in rows), 16))
        else:
            pixels = np.dstack([(values * 255).astype(np.uint8)] * 3 + [np.zeros((30, 40), np.uint8)])
            Image.fromarray(pixels).save(path, "PNG")
        return path

    @pytest.mark.parametrize(
        "kind",
        ["small floats", "negative floats", "8 bits in 16", "low bytes of 16-bit colours", "all transparent"],
    )
    def test_lost_content_is_warned_about(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
    ) -> None:
        pixels = np.asarray(read_image(self.varied(tmp_path / "a.tif", kind)))
        assert pixels.min() == pixels.max()
        assert "a.tif: its file holds more, but the picture was read as one colour" in caplog.text

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_a_picture_of_one_colour_is_not(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str
    ) -> None:
        caplog.set_level(logging.DEBUG, "captioning")
        for size in ((1, 1), (40, 30), (1200, 900)):
            (tmp_path / f"a.{suffix}").write_bytes(content_of(Image.new("RGB", size, (9, 90, 9)), suffix))
            read_image(tmp_path / f"a.{suffix}")
        read_image(self.save_floats(tmp_path / "b.tif", np.full((30, 40), 0.5)))
        read_image(self.save_floats(tmp_path / "c.tif", np.full((30, 40), np.nan)))
        assert not [record for record in caplog.records if record.name.startswith("captioning")]


class TestFingerprint:
    def test_it_is_that_of_the_content(self, tmp_path: Path) -> None:
        first, second = tmp_path / "a.png", tmp_path / "b.png"
        for path in (first, second):
            path.write_bytes(content_of(ramp(), "png"))
            os.utime(path, ns=(5, 5))
        image, fingerprint = read_fingerprinted(first)
        assert image.size == (40, 30) and read_fingerprinted(second)[1] == fingerprint
        assert fingerprint[:2] == (first.stat().st_size, 5)
        second.write_bytes(content_of(ramp(), "png") + b"x")
        assert read_fingerprinted(second)[1].digest != fingerprint.digest
        assert isinstance(fingerprint, Fingerprint)

    def test_open_files_are_decoded_in_the_same_way(self) -> None:
        assert decode(BytesIO(content_of(ramp(), "png")), "upload").size == (40, 30)
        with pytest.raises(InputError, match="upload: not a readable image"):
            decode(BytesIO(b"hello"), "upload")
