"""JPEG and PNG files without their metadata, for pictures that are whole although their EXIF is damaged.

Only the parts that the pixels depend on are kept. Nothing is decoded, and files of other formats stay as they
are.
"""

import struct
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_SCAN = 0xDA  # from this JPEG marker on there are only pixels
_ADOBE = 0xEE  # says how the colours are coded, like APP0


def without_metadata(content: bytes, *, keep_exif: bool) -> bytes:
    """Return the content of a picture file without metadata.

    Args:
        content: of the file, or its first part.
        keep_exif: keep the EXIF block, which says how the picture is turned.
    """
    if content.startswith(b"\xff\xd8"):
        return b"\xff\xd8" + b"".join(_jpeg_segments(content, keep_exif))
    if content.startswith(_PNG):
        return _PNG + b"".join(_png_chunks(content, keep_exif))
    return content


def _jpeg_segments(content: bytes, keep_exif: bool) -> Iterator[bytes]:
    """Yield segments (marker, length, content) up to the first scan, then the rest as it is."""
    position = 2
    while content[position : position + 1] == b"\xff" and len(content) >= position + 4:
        marker, length = struct.unpack_from(">BH", content, position + 1)
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == _SCAN:
            break
        segment = content[position : position + 2 + length]
        is_exif = marker == 0xE1 and segment[4:8] == b"Exif"
        is_metadata = 0xE1 <= marker <= 0xEF and marker != _ADOBE or marker == 0xFE
        if not is_metadata or is_exif and keep_exif:
            yield segment
        position += 2 + length
    yield content[position:]


def _png_chunks(content: bytes, keep_exif: bool) -> Iterator[bytes]:
    """Yield the chunks (length, name, content, checksum) of the pixels."""
    position = len(_PNG)
    while len(content) >= position + 8:
        length, name = struct.unpack_from(">I4s", content, position)
        if name in _PNG_PIXELS or name == b"eXIf" and keep_exif:
            yield content[position : position + 12 + length]
        position += 12 + length
