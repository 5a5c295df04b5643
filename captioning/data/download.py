"""Fetching data sets: resumable downloads and their archives, nothing left half-done.

A file grows as `<name>.part` and gets its name when complete; a broken download goes on where it was where
the server allows it. Archives unpack into a temporary folder first.
"""

import os
import shutil
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from captioning.errors import InputError

COCO = "http://images.cocodataset.org/"
COCO_2014 = {  # what each archive unpacks to, below the data set's folder
    "annotations/annotations_trainval2014.zip": "annotations",
    "zips/train2014.zip": "train2014",
    "zips/val2014.zip": "val2014",
}
_CHUNK = 1 << 20


def fetch(url: str, path: str | Path, on_progress: Callable[[int, int], None] | None = None) -> Path:
    """Download a file unless it is there.

    Args:
        url: anything urllib opens.
        path: the file's final name.
        on_progress: called with bytes so far and bytes in all (0 where the server does not say).

    Raises:
        InputError: the server can't be reached or refuses, or the connection broke; what came so far is kept.
    """
    path = Path(path)
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            have = have if answer.status == 206 else 0  # 200: the server sends the whole file again
            total = have + int(answer.headers.get("Content-Length") or 0)
            with open(part, "ab" if have else "wb") as file:
                while block := answer.read(_CHUNK):
                    have += file.write(block)
                    if on_progress:
                        on_progress(have, total)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: nothing is left to send, the part is whole
            raise InputError(f"{url}: the server answered {error.code} {error.reason}") from error
        total = have
    except (OSError, urllib.error.URLError) as error:
        raise InputError(
            f"{url} could not be downloaded ({error}); {have} bytes are kept in {part}. Run the command "
            "again to go on, or fetch the file elsewhere and put it there under its final name"
        ) from error
    if have < total:
        raise InputError(f"{url} ended after {have} of {total} bytes; run the command again to go on")
    os.replace(part, path)
    return path


def unpack(archive: str | Path, folder: str | Path, member: str) -> Path:
    """Unpack a ZIP file whose content is the folder `member`, unless that is there.

    Raises:
        InputError: the archive is broken.
    """
    target = Path(folder) / member
    if target.exists():
        return target
    fresh = Path(folder) / f"{member}.{os.getpid()}.new"
    try:
        with zipfile.ZipFile(archive) as content:
            content.extractall(fresh)
    except zipfile.BadZipFile as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise InputError(
            f"{archive} is no whole ZIP file ({error}); delete it and download it again"
        ) from error
    os.replace(fresh / member, target)
    shutil.rmtree(fresh, ignore_errors=True)
    return target


def download_coco(
    root: str | Path, server: str = COCO, on_progress: Callable[[int, int], None] | None = None
) -> list[Path]:
    """Fetch and unpack COCO 2014: annotations, 83,000 training and 41,000 validation pictures (19 GB).

    Args:
        root: the data set's folder, `data/coco` in the configs.
        server: where the archives lie.
        on_progress: see `fetch`.
    """
    folders = []
    for archive, member in COCO_2014.items():
        target = Path(root) / member
        if not target.exists():
            fetch(server + archive, Path(root) / Path(archive).name, on_progress)
            unpack(Path(root) / Path(archive).name, root, member)
        folders.append(target)
    return folders
