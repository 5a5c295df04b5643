"""What a run was made with: the commit of this package, the versions of all packages, the device."""

import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from captioning import __version__


def describe_environment() -> dict[str, Any]:
    """Return plain values, for `environment.json`."""
    packages = {part.metadata["Name"]: part.version for part in distributions()}
    return {
        "captioning": __version__,
        **describe_commit(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "packages": dict(sorted(packages.items())),
    }


def describe_commit(checkout: Path) -> dict[str, Any]:
    """Return a checkout's commit, and whether its files differ from it; None each where there is no git."""
    commit = status = None
    if (checkout / ".git").exists():  # an installed package may lie in a checkout of the user's
        commit = _git(checkout, "rev-parse", "HEAD")
        status = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "uncommitted_changes": None if status is None else bool(status)}


def _git(checkout: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(checkout), *words], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
