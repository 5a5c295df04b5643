"""What may be built from the options in a checkpoint: by role, and within sizes that a machine can bear."""

import importlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from torch import nn

from captioning.errors import InputError
from captioning.tokenizers import Tokenizer

_LARGEST = {  # options of a stranger's file that could take a machine down by their size alone
    "num_workers": 64,
    "image_size": 4096,
    "batch_size": 100_000,
    "eval_batch_size": 100_000,
    "max_words": 10_000,
}
_LARGEST_BY_ROLE = {  # of names that mean something else, or may be larger, elsewhere
    "decoder": dict.fromkeys(("beam_size", "num_best", "groups", "num_samples"), 1000),
    "extractor": {
        **dict.fromkeys(("min_regions", "max_regions", "num_regions", "num_proposals"), 10_000),
        "grid": 256,
    },
}


def build(
    options: Mapping[str, Any], role: str, trust: Sequence[str] = (), *, partial: bool = False, **parts: Any
) -> Any:
    """Instantiate plain options that came out of a checkpoint.

    Args:
        options: with `_target_`s.
        role: `model`, `extractor`, `reader`, `data`, `tokenizer` or `decoder`; what the `_target_`s may name.
        trust: packages whose classes are allowed as well.
        partial: return the call without making it, for arguments that Hydra does not take, such as tensors.
        parts: arguments that replace options of the same name.

    Raises:
        InputError: a `_target_` that is not allowed, or an interpolation, which could hide one; options that
            the class refuses, or that only a stranger would set.
    """
    if not isinstance(options.get("_target_"), str):
        raise InputError(f"the checkpoint does not name the class of its {role}, which _target_ is to do")
    if role in ("model", "extractor", "data", "tokenizer") and options.get("_partial_"):
        raise InputError(f"the checkpoint only prepares its {role} (_partial_) instead of building it")
    largest = {**_LARGEST, **_LARGEST_BY_ROLE.get(role, {})}
    for key, value in _leaves(options):
        if key == "_target_":
            check_target(str(value), role, trust)
        elif key in largest and value is not None and not _is_count(value, largest[key]):
            raise InputError(
                f"the {role} has {key} = {value!r:.40}; needed is a whole number up to {largest[key]}"
            )
        elif isinstance(value, str):
            _check_text(value)
        # On a device of its own a model would take memory before its shapes are compared with the weights.
        if role == "model" and key == "device":
            raise InputError(f"the checkpoint puts its model on the device {value}; do not trust it")
    try:
        return instantiate({**options, "_partial_": True} if partial else dict(options), **parts)
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        package = options["_target_"].partition(".")[0]
        if isinstance(error.__cause__, ImportError) and package in trust:
            raise InputError(
                f"the checkpoint's {role} is a class of {package}, which can't be imported from here; "
                "install it, or start the command in the folder that holds it"
            ) from error
        raise InputError(
            f"the checkpoint's {role} can't be built as it says: {(error.__cause__ or error)!r:.300}"
        ) from error


def prepare(options: Any) -> Any:
    """Prepare the calls that `_partial_` asks for, without making any: what they need may be absent."""
    if not isinstance(options, Mapping):
        return options
    prepared = {key: prepare(value) for key, value in options.items()}
    if not prepared.pop("_partial_", False):
        return prepared
    return partial(get_class(prepared.pop("_target_")), **prepared)


def renamed_weights(options: Mapping[str, Any], rename: Callable[[str], str]) -> dict[str, Any]:
    """Return an extractor's options with its `weights`, and those of the backbones inside it, renamed."""
    renamed = dict(options)
    for key, value in options.items():
        if isinstance(value, Mapping):
            renamed[key] = renamed_weights(value, rename)
        elif key == "weights" and isinstance(value, str):
            renamed[key] = rename(value)
    return renamed


def _is_count(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit


def _check_text(text: str) -> None:
    """Refuse an interpolation, and a path whose reading would never end."""
    if "${" in text:
        raise InputError(f"the checkpoint holds the interpolation {text}; do not trust it")
    try:
        mode = os.stat(text).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(
            f"the checkpoint names {text}, which is neither a file nor a folder; do not trust it"
        )


def build_datamodule(data: Mapping[str, Any], *, trust: Sequence[str] = (), **overrides: Any) -> Any:
    """Build the datamodule that a checkpoint describes; nothing is drawn or downloaded for it.

    Args:
        data: the metadata's `data`. Its tokenizer is left out: that of the `vocabulary` among the overrides
            has learnt what it needs.
        trust: packages whose readers are allowed as well.
        overrides: arguments that replace options of the same name.
    """
    reader = build_reader(data["reader"], trust=trust)
    left_out = ("reader", "prepare", "tokenizer", "places")
    plain = {key: value for key, value in data.items() if key not in left_out}
    return build({**plain, **overrides}, "data", trust, reader=reader)


def build_reader(reader: Mapping[str, Any], *, trust: Sequence[str] = ()) -> Any:
    """Build the reader that a checkpoint describes: a function that gives records.

    Raises:
        InputError: see `build`; also when it is called, as only then its options are used.
    """
    build_records = build(reader, "reader", trust)

    def read() -> Any:
        try:
            return build_records()
        except (InputError, OSError):
            raise
        except Exception as error:  # whatever a function answers to arguments that it was not made for
            raise InputError(
                f"the checkpoint's reader {reader['_target_']} fails with the options it says: {error!r:.200}"
            ) from error

    return read


def check_target(target: str, role: str, trust: Sequence[str] = ()) -> None:
    """Refuse a dotted name that a checkpoint may not name in this role.

    Raises:
        InputError: names it, and how to vouch for it.
    """
    # A text is a sequence of its letters, none of which is the package that was meant.
    trust = [trust] if isinstance(trust, str) else trust
    if not any(target == package or target.startswith(f"{package}.") for package in trust):
        module, _, name = target.rpartition(".")
        if not _ROLES[role](module, name):
            package = target.partition(".")[0]
            remedy = (
                "it was written by another version, or is not to be trusted"
                if package == "captioning"
                else f"if it is your own class, give trust=[{package}], else do not trust the file"
            )
            raise InputError(
                f"the checkpoint names {target} as its {role}, which captioning does not provide; {remedy}"
            )


def _exported(package: str, name: str) -> Any:
    # Only names that the package exports: nothing else is looked up, let alone imported.
    exporting = importlib.import_module(package)
    return getattr(exporting, name) if name in exporting.__all__ else None


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


def _is_tokenizer(module: str, name: str) -> bool:
    found = _exported(module, name) if module == "captioning.tokenizers" else None
    return isinstance(found, type) and issubclass(found, Tokenizer)


def _is_decoding_part(module: str, name: str) -> bool:
    return module == "captioning.decoding" and callable(_exported(module, name))


_ROLES = {
    "decoder": _is_decoding_part,
    "model": _is_model_part,
    "extractor": _is_extractor,
    "reader": _is_reader,
    "data": _is_data,
    "tokenizer": _is_tokenizer,
}


def _leaves(options: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a plain config that is no container, with the key that it stands under."""
    if isinstance(options, Mapping):
        for name, value in options.items():
            yield from _leaves(value, str(name))
    elif isinstance(options, Sequence) and not isinstance(options, str):
        for value in options:
            yield from _leaves(value, key)
    else:
        yield key, options
