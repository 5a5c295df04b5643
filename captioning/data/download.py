"""Downloads of data sets: resumable, and archives that are unpacked whole or not at all.

A file grows as `<name>.partial` and gets its name when it is complete; an interrupted download continues
where it stopped if the server allows it.
"""

import os
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from captioning.errors import InputError
from captioning.files import PARTIAL, partial_path

COCO = "http://images.cocodataset.org/"
COCO_2014 = {  # archive on the server: the folder that it holds
    "annotations/annotations_trainval2014.zip": "annotations",
    "zips/train2014.zip": "train2014",
    "zips/val2014.zip": "val2014",
}
_BLOCK = 1 << 20  # bytes read at once
_TIMEOUT = 60  # seconds without an answer


def fetch(url: str, path: str | Path, on_progress: Callable[[int, int], None] | None = None) -> Path:
    """Download a file unless it exists.

    Args:
        url: anything urllib opens.
        path: the file's final name.
        on_progress: called with the bytes so far and the bytes in all (0 where the server does not say).

    Raises:
        InputError: the server is unreachable or refuses, or the connection broke; the bytes so far are kept.
    """
    path = Path(path)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    done = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            done = done if response.status == 206 else 0  # 200: the server sends the whole file again
            total = done + int(response.headers.get("Content-Length") or 0)
            with open(partial, "ab" if done else "wb") as file:
                while block := response.read(_BLOCK):
                    done += file.write(block)
                    if on_progress:
                        on_progress(done, total)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: no bytes are left to send, the partial file is complete
            raise InputError(f"{url}: the server answered {error.code} {error.reason}") from error
        total = done
    except (OSError, urllib.error.URLError) as error:
        raise InputError(
            f"{url} could not be downloaded ({error}); {done} bytes are kept in {partial}. Run the command "
            "again to continue, or download the file elsewhere and put it there under its final name"
        ) from error
    if done < total:
        raise InputError(f"{url} ended after {done} of {total} bytes; run the command again to continue")
    os.replace(partial, path)
    return path


def unpack(archive: str | Path, folder: str | Path, member: str) -> Path:
    """Unpack the folder `member` of a ZIP file into `folder`, unless it exists there.

    Raises:
        InputError: the archive is damaged or holds no such folder; nothing is left behind.
    """
    target = Path(folder) / member
    if target.exists():
        return target
    with TemporaryDirectory(dir=folder, prefix=f"{member}.", suffix=PARTIAL) as unpacked:
        try:
            with zipfile.ZipFile(archive) as content:
                content.extractall(unpacked)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise InputError(
                f"{archive} is a damaged ZIP file ({error}); delete it and download it again"
            ) from error
        if not (Path(unpacked) / member).is_dir():
            raise InputError(f"{archive} holds no folder {member!r}; delete it and download it again")
        os.replace(Path(unpacked) / member, target)
    return target


def download_coco(
    root: str | Path, server: str = COCO, on_progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Download and unpack COCO 2014: annotations, 83,000 training and 41,000 validation pictures (19 GB).

    Args:
        root: the data set's folder, `data/coco` in the configs.
        server: URL of the folder that holds the archives.
        on_progress: see `fetch`.
    """
    folders = []
    for name, member in COCO_2014.items():
        archive = Path(root) / Path(name).name
        if not (Path(root) / member).exists():
            fetch(server + name, archive, on_progress)
        folders.append(unpack(archive, root, member))
    return folders
