"""What is written beside the weights, and how a model comes back from a file alone.

A checkpoint is a dictionary of tensors and plain containers. Its entry `captioning` is the metadata: format,
words, provenance of the features, and the plain configs of model, data and features, each with its
`_target_`s. `load` needs nothing else.

A checkpoint from a stranger cannot run code. `torch.load(weights_only=True)` reads it, and what a `_target_`
may name depends on its role: a model of `captioning.models` with layers of `torch.nn`, an extractor of
`captioning.features`, a reader of `captioning.data`. These are classes and readers that only read. Packages
that the user vouches for with `trust` are allowed too.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.models.base import CaptionModel
from captioning.vocabulary import Vocabulary

FORMAT = 2
BEST, LAST = "best.ckpt", "last.ckpt"


class Loaded(NamedTuple):
    """A model in evaluation mode, its words, and the metadata it was saved with."""

    model: CaptionModel
    vocabulary: Vocabulary
    metadata: dict[str, Any]


def locate(path: str | Path, *, first: str = LAST) -> Path:
    """Find a checkpoint file by its own path or that of its run folder.

    Args:
        path: a file, or a folder that holds `checkpoints/`.
        first: in a folder, `LAST` or `BEST`: which of the two is preferred.

    Raises:
        InputError: there is none.
    """
    found = Path(path).expanduser()
    if found.is_dir():
        candidates = [found / "checkpoints" / name for name in (first, BEST, LAST)]
        found = next((candidate for candidate in candidates if candidate.exists()), found)
    if not found.is_file():
        raise InputError(
            f"there is no checkpoint {path}; training writes them to runs/<experiment>/<time>/checkpoints"
        )
    return found


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file as tensors and plain containers.

    Raises:
        InputError: no such file, not a checkpoint, or not one of this project and version.
    """
    path = locate(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen types for a broken file
        raise InputError(
            f"{path} is not a readable checkpoint ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    metadata = content.get("captioning") if isinstance(content, dict) else None
    if not isinstance(metadata, dict) or "format" not in metadata:
        raise InputError(
            f"{path} is not a checkpoint of this project; use one that captioning train has written"
        )
    if metadata["format"] != FORMAT:
        raise InputError(
            f"{path} has format {metadata['format']!r}, needed is {FORMAT}: it was written by another "
            "version of captioning, whose parameters have other names; train again, or use that version"
        )
    return content


def load(
    path: str | Path, *, trust: Sequence[str] = (), model_options: Mapping[str, Any] | None = None
) -> Loaded:
    """Build the model of a checkpoint file and load its weights.

    Args:
        path: a file or a run folder.
        trust: packages whose classes the file may name as well.
        model_options: overrides of the model's options, by dotted key, such as
            `{"attention.at_test._target_": "captioning.models.MostLikely"}`.

    Raises:
        InputError: see `read` and `build`; weights that do not fit; an option that the model does not have.
    """
    content = read(path)
    metadata = content["captioning"]
    weights = {
        name.removeprefix("model."): value
        for name, value in content["state_dict"].items()
        if name.startswith("model.")
    }
    options = override(metadata["model"], model_options or {})
    model = _build_with_weights(path, options, weights, trust)
    return Loaded(model.eval(), Vocabulary(metadata["words"]), metadata)


def _build_with_weights(
    path: str | Path, options: Mapping[str, Any], weights: Mapping[str, Tensor], trust: Sequence[str]
) -> CaptionModel:
    # On the meta device no memory is taken before the shapes have been compared with those in the file.
    with torch.device("meta"):
        model = build(options, "model", trust)
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise InputError(
            f"{path}: the weights do not fit the model that the file describes: {str(error)[:300]}"
        ) from error
    if any(part.is_meta for part in model.buffers()):  # buffers that are computed, not stored
        model = build(options, "model", trust)
        model.load_state_dict(weights)
    return model


def override(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain options with some of them replaced, by dotted key.

    Raises:
        InputError: a key that is not there.
    """
    config = OmegaConf.create(dict(options))
    for key, value in changes.items():
        if OmegaConf.select(config, key, default="???") == "???":
            raise InputError(
                f"model_options has {key!r}, which the model does not have; it has {', '.join(options)}"
            )
        OmegaConf.update(config, key, value)
    plain: Any = OmegaConf.to_container(config)
    return plain


def build(options: Mapping[str, Any], role: str, trust: Sequence[str] = (), **parts: Any) -> Any:
    """Instantiate plain options that came out of a checkpoint.

    Args:
        options: with `_target_`s.
        role: `model`, `extractor`, `reader`, `data` or `decoder`; what the `_target_`s may name.
        trust: packages whose classes are allowed as well.
        parts: arguments that replace options of the same name.

    Raises:
        InputError: a `_target_` that is not allowed, or an interpolation, which could hide one.
    """
    for key, text in _texts(options):
        if "${" in text:
            raise InputError(f"the checkpoint holds the interpolation {text}; do not trust it")
        if key == "_target_":
            check_target(text, role, trust)
    return instantiate(dict(options), **parts)


def build_data(data: Mapping[str, Any], *, trust: Sequence[str] = (), **overrides: Any) -> Any:
    """Build the datamodule that a checkpoint describes; nothing is drawn or downloaded for it.

    Args:
        data: the metadata's `data`.
        trust: packages whose readers are allowed as well.
        overrides: arguments that replace options of the same name.
    """
    reader = build_reader(data["reader"], trust=trust)
    plain = {key: value for key, value in data.items() if key not in ("reader", "prepare")}
    return build({**plain, **overrides}, "data", trust, reader=reader)


def build_reader(reader: Mapping[str, Any], *, trust: Sequence[str] = ()) -> Any:
    """Build the reader that a checkpoint describes: a function that gives records."""
    return build(reader, "reader", trust)


def check_target(target: str, role: str, trust: Sequence[str] = ()) -> None:
    """Refuse a dotted name that a checkpoint may not name in this role.

    Raises:
        InputError: names it, and how to vouch for it.
    """
    if not any(target == package or target.startswith(f"{package}.") for package in trust):
        module, _, name = target.rpartition(".")
        if not _ROLES[role](module, name):
            raise InputError(
                f"the checkpoint names {target} as its {role}, which captioning does not provide; if it is "
                f"your own class, give trust=[{target.partition('.')[0]}], else do not trust the file"
            )


def _exported(package: str, name: str) -> Any:
    # Only names that the package exports: nothing else is looked up, let alone imported.
    room = importlib.import_module(package)
    return getattr(room, name) if name in room.__all__ else None


def _is_model_part(module: str, name: str) -> bool:
    if module == "torch.nn" and name.isidentifier():
        found = getattr(nn, name, None)
    else:
        found = _exported(module, name) if module == "captioning.models" else None
    return isinstance(found, type) and issubclass(found, nn.Module)


def _is_extractor(module: str, name: str) -> bool:
    found = _exported(module, name) if module == "captioning.features" else None
    return isinstance(found, type) and hasattr(found, "expected_provenance")


def _is_reader(module: str, name: str) -> bool:
    if module != "captioning.data":
        return False
    return _exported(module, name) in importlib.import_module(module).READERS


def _is_data(module: str, name: str) -> bool:
    return (module, name) == ("captioning.data", "CaptionDataModule")


def _is_decoding_part(module: str, name: str) -> bool:
    return module == "captioning.decoding" and callable(_exported(module, name))


_ROLES = {
    "decoder": _is_decoding_part,
    "model": _is_model_part,
    "extractor": _is_extractor,
    "reader": _is_reader,
    "data": _is_data,
}


def _texts(options: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a plain config with the key that it stands under."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from _texts(value, str(name))
    elif isinstance(options, str):
        yield key, options
    elif isinstance(options, Sequence):
        for value in options:
            yield from _texts(value)
