"""Weights of torchvision's networks: published ones by name, or a state dict from a local file."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from captioning.errors import InputError


def sha256_prefix(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def build_published(architecture: str, weights: str) -> Any:
    """Build a network with weights that torchvision publishes; they are downloaded once.

    Raises:
        InputError: there are no such weights, or they cannot be downloaded.
    """
    choices = torchvision.models.get_model_weights(architecture)
    if weights not in choices.__members__:
        raise InputError(
            f"{architecture} has no weights {weights!r}; choose one of {', '.join(choices.__members__)}, "
            "the path of a state dict (with its suffix), or random"
        )
    try:
        return torchvision.models.get_model(architecture, weights=choices[weights])
    except OSError as error:
        raise InputError(
            f"the weights {weights} of {architecture} could not be downloaded ({error}); download "
            f"{choices[weights].url} on another machine and set features.extractor.weights=<that file>"
        ) from error


def read_state(path: Path) -> Mapping[str, Tensor]:
    """Read a state dict.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise InputError(f"there is no weights file {path}; set features.extractor.weights=<file>")
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
    network: nn.Module, state: Mapping[str, Tensor], *, source: str | Path, needs: str, remedy: str
) -> None:
    """Load the tensors that a network has; the file may hold more.

    Args:
        network: receives the tensors.
        state: tensors by name.
        source: the file they come from, for error messages.
        needs: for error messages, completes "tensors that ...", for example "resnet18 needs up to node
            layer2".
        remedy: for error messages, what to do where tensors are missing.

    Raises:
        InputError: a tensor is missing or has another shape.
    """
    needed = network.state_dict()
    # Files of older torch versions lack this counter, and evaluation mode does not read it.
    missing = [name for name in needed if name not in state and not name.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} of the {len(needed)} tensors that {needs}, first {missing[0]}; "
            f"{remedy}"
        )
    wrong = [name for name in needed if name in state and state[name].shape != needed[name].shape]
    if wrong:
        raise InputError(
            f"{source}: {wrong[0]} has shape {tuple(state[wrong[0]].shape)} but the network needs "
            f"{tuple(needed[wrong[0]].shape)}; these are weights of another architecture"
        )
    network.load_state_dict({name: value for name, value in state.items() if name in needed}, strict=False)
