"""What a run was made with: the commit of this package, the versions of all packages, the device."""

import platform
from importlib.metadata import distributions
from typing import Any

import torch

from captioning import __version__
from captioning.files import describe_commit


def describe_environment() -> dict[str, Any]:
    """Return plain values, for `environment.json`."""
    packages = {part.metadata["Name"]: part.version for part in distributions()}
    return {
        "captioning": __version__,
        **describe_commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "packages": dict(sorted(packages.items())),
    }
