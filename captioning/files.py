"""Files that are written whole or not at all; where configs, pictures, unfinished files lie; of which commit.

Every writer of the package goes through `atomic_write`, so that a kill or a full disk leaves the old file or
the new one. What grows over many runs (feature files, downloads) uses `partial_path` and renames at its end.
"""

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


def _config_folder() -> Path:
    package = Path(__file__).resolve().parent
    checkout = package.parent / "conf"
    return checkout if (checkout / "train.yaml").is_file() else package / "conf"


CONF = _config_folder()  # at the top of a checkout, inside the package once it is installed
PHOTOGRAPHS = Path(__file__).with_name("photographs")  # that ship with the package; see its SOURCES.txt
PARTIAL = ".partial"
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def partial_path(path: str | Path) -> Path:
    """Return the name under which a file grows until it is complete: `<name>.partial`."""
    path = Path(path)
    return path.with_name(f"{path.name}{PARTIAL}")


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` at the end, or removed after an error.

    The caller creates a file or a folder there. A folder only replaces nothing or an empty folder. Symbolic
    links are followed: what they point to is replaced. A device or a pipe is written to, never replaced.

    Raises:
        OSError: as the file system gives it; `path` is untouched.
    """
    if _is_stream(path):
        with tempfile.TemporaryDirectory() as folder:
            yield (whole := Path(folder) / "whole")
            with whole.open("rb") as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target)
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Writers of the same file, perhaps on several machines, have different names; the last one wins, with a
    # whole file.
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:8]}{PARTIAL}")
    try:
        yield temporary
        if temporary.is_file():
            _sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def is_file_name(weights: str) -> bool:
    """Return whether `weights` is the path of a state dict: it has a suffix, a published name has none."""
    return bool(Path(weights).suffix)


def weights_name(weights: str) -> str:
    """Return the name of weights without their folder, so that a moved file counts as the same weights."""
    return Path(weights).name if is_file_name(weights) else weights


def absolute_weights(weights: str) -> str:
    """Return the absolute path of a weights file; a published name stays as it is."""
    return str(Path(weights).absolute()) if is_file_name(weights) else weights


def describe_commit(checkout: Path = CONF.parent) -> dict[str, str | bool | None]:
    """Return a checkout's commit, and whether its files differ from it; None each where there is no git."""
    commit = status = None
    if (checkout / ".git").exists():  # an installed package may lie in a checkout of the user's
        commit = _git(checkout, "rev-parse", "HEAD")
        status = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "uncommitted_changes": None if status is None else bool(status)}


def short_commit(checkout: Path = CONF.parent) -> str | None:
    """Return twelve digits of a checkout's commit, `-dirty` where files have changed; None without one."""
    found = describe_commit(checkout)
    dirty = "-dirty" if found["uncommitted_changes"] else ""
    return f"{found['commit'][:12]}{dirty}" if isinstance(found["commit"], str) else None


def _git(checkout: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *words], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _is_stream(path: str | Path) -> bool:
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _sync(path: Path) -> None:
    # Without this a power cut after the rename could leave an empty file under the final name.
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
