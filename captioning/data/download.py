"""Downloads of published data sets: resumable, checked, and unpacked whole or not at all.

A file grows as `<name>.partial` and gets its name once its size and SHA-256 are those of the published file.
A broken transfer is resumed where it stopped, in the same run or in a later one. So whatever a
server or a proxy sends, what lies under the final name is the published file.
"""

import errno
import hashlib
import http.client
import os
import re
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from captioning.errors import InputError
from captioning.files import partial_path


class Archive(NamedTuple):
    """A published ZIP file: the folder in it, its size in bytes, its SHA-256 in hexadecimal digits."""

    folder: str
    size: int
    sha256: str


COCO = "http://images.cocodataset.org/"
COCO_2014 = {  # name on the server; checksums as in torchvision's prototype of its COCO data set
    "annotations/annotations_trainval2014.zip": Archive(
        "annotations", 252_872_794, "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009"
    ),
    "zips/train2014.zip": Archive(
        "train2014", 13_510_573_713, "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775"
    ),
    "zips/val2014.zip": Archive(
        "val2014", 6_645_013_297, "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0"
    ),
}
_BLOCK = 1 << 20  # bytes read at once
_TIMEOUT = 60  # seconds without an answer
_ZIP_START = b"PK\x03\x04"
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
# Of the disk, not of the server or the archive; the command says what to do about each.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)

Progress = Callable[[int, int], None]


def fetch(url: str, path: str | Path, *, size: int, sha256: str, on_progress: Progress | None = None) -> Path:
    """Download a published file unless it exists.

    Args:
        url: anything urllib opens.
        path: the file's final name.
        size: of the published file, in bytes.
        sha256: of the published file, in hexadecimal digits.
        on_progress: called with the bytes so far and the bytes in all.

    Raises:
        InputError: the server is unreachable, refuses or sends another file, the connection broke (the bytes
            so far are kept), the disk is too small, or another process is downloading the same file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        if path.exists():
            if _bytes_in(path) != size:
                raise InputError(
                    f"{path} has {_bytes_in(path):,} bytes, the published file has {size:,}; delete it and "
                    "run the command again"
                )
            return path
        partial = partial_path(path)
        if _bytes_in(partial) > size:
            partial.unlink()  # the beginning of some other file
        _require_space(path, size - _bytes_in(partial))
        _receive_all(url, partial, size, on_progress)
        if (found := _sha256(partial)) != sha256:
            partial.unlink()
            raise InputError(
                f"{url} came with the SHA-256 {found[:16]}…, needed is {sha256[:16]}…: it is another file "
                "or was damaged on its way, and is deleted; run the command again to download it anew"
            )
        os.replace(partial, path)
    return path


def _receive_all(url: str, partial: Path, size: int, on_progress: Progress | None) -> None:
    while (done := _bytes_in(partial)) < size:
        problem = _receive(url, partial, size, done, on_progress)
        # After a break the next connection goes on, as long as each of them brings something.
        if _bytes_in(partial) == done:
            raise InputError(
                f"{url} could not be downloaded ({problem}); {done:,} of {size:,} bytes are kept in "
                f"{partial}. Run the command again to continue, or download the file elsewhere and put it "
                "there under its final name"
            )


def _receive(url: str, partial: Path, size: int, done: int, on_progress: Progress | None) -> str:
    """Write what one connection brings, from byte `done` on; return why it ended.

    Raises:
        InputError: the server refuses, or what it sends is another file.
    """
    try:
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            start, length = _extent(response)
            if length is not None and length != size:
                raise InputError(
                    f"{url}: the server sends {length:,} bytes of {response.headers.get_content_type()}, the "
                    f"published file has {size:,}; is it the login page of a network, or another file?"
                )
            if start in (0, done):  # 0: a server that sends the whole file whatever is asked
                _write(url, response, partial, size, start, on_progress)
                return "the connection ended"
    except urllib.error.HTTPError as error:
        if error.code != 416 or not done:  # 416: it has no such part, or knows no parts
            raise InputError(f"{url}: the server answered {error.code} {error.reason}") from error
        start = 0
    except InputError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no URL, a bad header
        if getattr(error, "errno", None) in _DISK_ERRORS:
            raise
        return str(error) or type(error).__name__
    if done:  # some proxies answer with another part, the one that they hold; the whole file has no other
        return _receive(url, partial, size, 0, on_progress)
    return f"the server sends the bytes from {start} on, asked were all"


def _extent(response: Any) -> tuple[int, int | None]:
    """Return the first byte that a response brings, -1 where it does not say, and the whole file's size."""
    if response.status == 206:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        return (int(match[1]), None if match[2] == "*" else int(match[2])) if match else (-1, None)
    length = response.headers.get("Content-Length")
    return 0, None if length is None else int(length)


def _write(
    url: str, response: Any, partial: Path, size: int, start: int, on_progress: Progress | None
) -> None:
    block = b""
    if start == 0 and url.endswith(".zip"):
        # Before anything is overwritten: a page of HTML may come without its length.
        block = response.read(len(_ZIP_START))
        if len(block) == len(_ZIP_START) and block != _ZIP_START:
            raise InputError(
                f"{url}: the server sends no ZIP file but {response.headers.get_content_type()} that begins "
                f"with {block + response.read1(40)!r}; is it the login page of a network?"
            )
    # Not truncated: what an earlier connection brought beyond the end of this one stays.
    with open(partial, "r+b" if partial.exists() else "wb") as file:
        file.seek(start)
        # `read1` gives what has come before a break; `read` would lose it.
        while (position := file.tell()) < size and (block := block or response.read1(_BLOCK)):
            file.write(block[: size - position])
            block = b""
            if on_progress:
                on_progress(file.tell(), size)


def _bytes_in(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise InputError(
            f"{path} needs {needed / 1e9:.2f} GB more, but {path.parent} has {free / 1e9:.2f} GB free; make "
            "room"
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep other processes from making the same file or folder.

    Raises:
        InputError: one of them is making it.
    """
    try:
        with FileLock(f"{partial_path(path)}.lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"another process is making {path}; wait for it to end") from error


def unpack(archive: str | Path, folder: str | Path, member: str) -> Path:
    """Unpack the folder `member` of a ZIP file into `folder`, unless it exists there.

    Raises:
        InputError: the archive is damaged or holds no such folder (nothing is left behind), the disk is too
            small, or another process is unpacking it.
    """
    target = Path(folder) / member
    if target.exists():
        return target
    with _alone(target):
        if target.exists():
            return target
        unpacked = partial_path(target)
        shutil.rmtree(unpacked, ignore_errors=True)  # a killed process may have left it
        try:
            _extract(archive, unpacked, member)
            os.replace(unpacked / member, target)
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
    return target


def _extract(archive: str | Path, folder: Path, member: str) -> None:
    try:
        with zipfile.ZipFile(archive) as content:
            wanted = [entry for entry in content.infolist() if entry.filename.startswith(f"{member}/")]
            # No entry gives more bytes than it declares, or its checksum would be that of fewer.
            _require_space(folder, sum(entry.file_size for entry in wanted))
            content.extractall(folder, wanted)
    except InputError:
        raise
    except Exception as error:  # zipfile and its decompressors raise a dozen types for damaged files
        if getattr(error, "errno", None) in _DISK_ERRORS:
            raise
        message = str(error) or type(error).__name__
        raise InputError(
            f"{archive} is a damaged ZIP file ({message}); delete it and download it again"
        ) from error
    if not (folder / member).is_dir():
        raise InputError(f"{archive} holds no folder {member!r}; delete it and download it again")


def download_coco(
    root: str | Path,
    server: str = COCO,
    on_progress: Progress | None = None,
    archives: Mapping[str, Archive] = COCO_2014,
) -> list[Path]:
    """Download and unpack COCO 2014: annotations, 83,000 training and 41,000 validation pictures (20 GB).

    Args:
        root: the data set's folder, `data/coco` in the configs.
        server: URL of the folder that holds the archives.
        on_progress: see `fetch`.
        archives: by their names on the server.
    """
    folders = []
    for name, (member, size, sha256) in archives.items():
        path = Path(root) / Path(name).name
        if not (Path(root) / member).exists():
            fetch(server + name, path, size=size, sha256=sha256, on_progress=on_progress)
        folders.append(unpack(path, root, member))
    return folders
