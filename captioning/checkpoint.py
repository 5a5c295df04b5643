"""What is written beside the weights, and how a model comes back from a file alone.

A checkpoint's `captioning` entry holds plain containers only: the model's and the data's config, the
features' config and provenance, and the words. `load` needs nothing else, and builds nothing but models,
readers and backbones of this package and torch's layers, so that a checkpoint from a stranger can't run code.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from captioning.errors import InputError
from captioning.models.base import CaptionModel
from captioning.vocabulary import Vocabulary

FORMAT = 1
_TRUSTED = (  # what a checkpoint may have built, by the place where it is defined
    "captioning.models.",
    "captioning.features.backbones.Backbone",
    "captioning.features.bottom_up.BottomUpFiles",
    "captioning.features.regions.RegionDetector",
    "captioning.data.datamodule.CaptionDataModule",
    "captioning.data.sampling.sample_captions",
    "captioning.data.annotations.read_",
    "captioning.data.own.read_",
    "captioning.data.toy.read_",
    "torch.nn.modules.",
)


class Loaded(NamedTuple):
    """A model in evaluation mode, its words, and the plain description it was saved with."""

    model: CaptionModel
    vocabulary: Vocabulary
    description: dict[str, Any]


def describe(
    config: Any,
    words: Sequence[str],
    provenance: Mapping[str, Any],
    *,
    parts: Sequence[str] = ("model", "data", "features"),
) -> dict[str, Any]:
    """Describe a training run in plain containers.

    Args:
        config: the composed config; its `parts` are kept with every interpolation resolved.
        words: `Vocabulary.words`.
        provenance: what the feature cache says of itself.
        parts: config groups to keep.
    """
    plain = {part: OmegaConf.to_container(config[part], resolve=True) for part in parts}
    return {"format": FORMAT, **plain, "words": list(words), "provenance": dict(provenance)}


def locate(path: str | Path, names: Sequence[str] = ("last.ckpt", "best.ckpt")) -> Path:
    """Find a checkpoint file by its own path or that of its run folder.

    Args:
        path: a file, or a folder that holds `checkpoints/`.
        names: what to look for in a folder, first choice first.
    """
    found = Path(path)
    if found.is_dir():
        found = next(
            (found / "checkpoints" / name for name in names if (found / "checkpoints" / name).exists()), found
        )
    if not found.is_file():
        raise InputError(
            f"there is no checkpoint {path}; training writes them to runs/<experiment>/<time>/checkpoints"
        )
    return found


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file as tensors and plain containers.

    Raises:
        InputError: no such file, not a checkpoint, or not one of this project.
    """
    path = locate(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a broken file
        raise InputError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    said = content.get("captioning") if isinstance(content, dict) else None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a checkpoint of this project, or of another version (needed format {FORMAT}); "
            "use one that python -m captioning.train wrote"
        )
    return content


def load(path: str | Path) -> Loaded:
    """Build the model that a checkpoint holds.

    Raises:
        InputError: see `read`; or the file names classes outside this package and torch.
    """
    content = read(path)
    said = content["captioning"]
    model = build(said["model"])
    weights = {
        name.removeprefix("model."): value
        for name, value in content["state_dict"].items()
        if name.startswith("model.")
    }
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{path}: the weights don't fit the model that the file describes: {error}"
        ) from error
    return Loaded(model.eval(), Vocabulary(said["words"]), said)


def build(config: Mapping[str, Any], **parts: Any) -> Any:
    """Instantiate a plain config that came out of a checkpoint.

    Raises:
        InputError: a `_target_` that is no model, reader, backbone or layer, or an interpolation, which could
            hide one.
    """
    for key, text in _texts(config):
        if "${" in text or (key == "_target_" and not is_trusted(text)):
            raise InputError(
                f"the checkpoint wants to call {text}, which is no model, reader or backbone of captioning "
                "and no layer of torch; don't trust it"
            )
    return instantiate(dict(config), **parts)


def is_trusted(target: str) -> bool:
    """Say whether a dotted name is of something that may be built, wherever it was imported to."""
    if not target.startswith(("captioning.", "torch.nn.")):  # others are not even imported
        return False
    try:
        found = get_object(target)
    except Exception:  # Hydra's refusals and what imports raise are of many types
        return False
    return f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}".startswith(_TRUSTED)


def _texts(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Give every text of a plain config with the key that it stands under."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from _texts(value, str(name))
    elif isinstance(config, str):
        yield key, config
    elif isinstance(config, Sequence):
        for value in config:
            yield from _texts(value)
