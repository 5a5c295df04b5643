"""Weights of torchvision's networks: published ones by name, or a state dict from a local file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from captioning.errors import InputError


def is_file_name(weights: str) -> bool:
    """Tell the path of a state dict, which has a suffix, from the name of published weights."""
    return bool(Path(weights).suffix)


def weights_name(weights: str) -> str:
    """Name weights without the folder they lie in, so that a moved file is the same weights."""
    return Path(weights).name if is_file_name(weights) else weights


def digest(path: Path) -> str:
    """Tell a file by its content: the first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def build_published(architecture: str, weights: str) -> Any:
    """Build a network with weights that torchvision publishes, downloaded once.

    Raises:
        InputError: no such weights, or they can't be downloaded.
    """
    choices = torchvision.models.get_model_weights(architecture)
    if weights not in choices.__members__:
        raise InputError(
            f"{architecture} has no weights {weights!r}; there are {', '.join(choices.__members__)}, "
            "the path of a state dict (with its suffix), or random"
        )
    try:
        return torchvision.models.get_model(architecture, weights=choices[weights])
    except OSError as error:
        raise InputError(
            f"the weights {weights} of {architecture} could not be downloaded ({error}); fetch "
            f"{choices[weights].url} elsewhere and set features.extractor.weights=<that file>"
        ) from error


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Read a state dict.

    Raises:
        InputError: no such file, or no state dict.
    """
    if not path.is_file():
        raise InputError(
            f"there is no weights file {path}; say where it lies: features.extractor.weights=<file>, for "
            "captioning.caption weights=<file>"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a file that is no state dict
        raise InputError(
            f"{path} is no state dict that torch.load can read ({type(error).__name__})"
        ) from error
    if not isinstance(state, Mapping):
        raise InputError(f"{path} holds a {type(state).__name__}, not a state dict")
    return state


def load_state(
    network: nn.Module, state: Mapping[str, Tensor], *, source: Path, needs: str, remedy: str
) -> None:
    """Load the tensors that a network has; the file may hold more.

    Args:
        network: what is filled.
        state: tensors by name.
        source: where they come from, for messages.
        needs: who needs what is missing, for messages.
        remedy: what to do about it.

    Raises:
        InputError: a tensor is missing or has another shape.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} of the {len(own)} tensors that {needs}, first {missing[0]}; "
            f"{remedy}"
        )
    wrong = [name for name in own if name in state and state[name].shape != own[name].shape]
    if wrong:
        raise InputError(
            f"{source}: {wrong[0]} is {tuple(state[wrong[0]].shape)} but {needs.partition(' ')[0]} needs "
            f"{tuple(own[wrong[0]].shape)}; these are weights of another architecture"
        )
    network.load_state_dict({name: value for name, value in state.items() if name in own}, strict=False)
