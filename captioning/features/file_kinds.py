"""What a file that is no picture is, by its name or first bytes, and what its owner can do about it."""

import re

HEAD = 1024  # bytes that `describe_content` looks at

_URL = re.compile(r"(https?|ftps?|s3|gs|file):/|data:\w+/|[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_VIDEO = "a video; save one frame as a picture first (ffmpeg -i <video> -frames:v 1 frame.png)"
_HEIC = "a HEIC photograph, which Pillow cannot read; save it as JPEG first"
_RAW = "a camera's raw file; save it as JPEG first"
_KINDS = (  # pattern at the start of the file, and what such a file is
    (rb".{0,1019}%PDF-", "a PDF document; save the page as a picture first (pdftoppm -png <document> page)"),
    (rb".{4}ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", _HEIC),
    (rb".{4}ftypcrx |FUJIFILMCCD-RAW|IIR[OS]|IIU\x00", _RAW),
    (
        rb".{4}(ftyp(?!avi[fs])|moov|mdat)|RIFF.{4}AVI |\x1a\x45\xdf\xa3|FLV\x01|\x00\x00\x01[\xba\xb3]",
        _VIDEO,
    ),
    (rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11|(G.{187}){3}G|OggS", _VIDEO),
    (rb"\s*(<\?xml.{0,900})?<svg|\s*<\?xml.{0,900}<svg", "an SVG drawing; save it as PNG first"),
    (
        rb"(\xef\xbb\xbf)?\s*<(!doctype html|html|head|body)",
        "a web page; open it and save its picture",
    ),
    (rb"version https://git-lfs", "a Git LFS pointer without the picture; run git lfs pull"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript drawing; save it as PNG first"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf\x27\x1c|Rar!|BZh|\xfd7zXZ|.{257}ustar", "an archive; unpack it first"),
    (rb"SQLite format 3|\x89HDF\r\n|\x93NUMPY", "a file of data, no picture"),
)
_PATTERNS = tuple((re.compile(pattern, re.DOTALL | re.IGNORECASE), kind) for pattern, kind in _KINDS)


def is_url(name: str) -> bool:
    """Tell a URL from a file name; `Path` may have removed one of its slashes."""
    return _URL.match(name) is not None


def describe_content(head: bytes) -> str | None:
    """Say what a file is that Pillow does not read, with the remedy; None where it is unknown.

    Args:
        head: its first `HEAD` bytes.
    """
    return next((kind for pattern, kind in _PATTERNS if pattern.match(head)), None)
