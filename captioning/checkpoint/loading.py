"""A model comes back from a checkpoint: built without memory, compared with its weights, filled with them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.modules import module as registration

from captioning.checkpoint.building import build
from captioning.checkpoint.reading import read
from captioning.errors import InputError
from captioning.models.base import CaptionModel
from captioning.vocabulary import SPECIAL_WORDS, Vocabulary


class Loaded(NamedTuple):
    """A model in evaluation mode, its words, and the metadata it was saved with."""

    model: CaptionModel
    vocabulary: Vocabulary
    metadata: dict[str, Any]


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
    vocabulary = build_vocabulary(metadata, path, trust=trust)
    model = _build_with_weights(path, options, weights, trust)
    if len(vocabulary) != model.vocabulary_size:
        raise InputError(
            f"{path} is damaged: it has {len(vocabulary)} words, but its model is one of "
            f"{model.vocabulary_size}"
        )
    return Loaded(model.eval(), vocabulary, metadata)


def build_vocabulary(
    metadata: Mapping[str, Any], path: str | Path, *, trust: Sequence[str] = ()
) -> Vocabulary:
    """Build the vocabulary of a checkpoint, with its tokenizer.

    Args:
        metadata: of the checkpoint.
        path: of the checkpoint, for messages.
        trust: packages whose tokenizers are allowed as well.

    Raises:
        InputError: see `build`; words that are none of ours.
    """
    words = metadata["words"]
    if tuple(words[: len(SPECIAL_WORDS)]) != SPECIAL_WORDS:
        raise InputError(f"{path} is damaged: its words begin with {words[:4]}, not with {SPECIAL_WORDS}")
    return Vocabulary(words, build(metadata["tokenizer"], "tokenizer", trust))


def _build_with_weights(
    path: str | Path, options: Mapping[str, Any], weights: Mapping[str, Tensor], trust: Sequence[str]
) -> CaptionModel:
    # On the meta device no memory is taken before the shapes have been compared with those in the file.
    with torch.device("meta"), _registering_at_most(1000 + 50 * len(weights)):
        model = build(options, "model", trust)
    if not isinstance(model, CaptionModel):
        raise InputError(f"{path} names {options['_target_']} as its model, which captions nothing")
    needed = model.state_dict()
    check_kinds(path, weights, needed)
    # A portable file has half precision.
    weights = {k: v.to(needed[k].dtype) if k in needed else v for k, v in weights.items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path}: the weights do not fit the model that the file describes: {reason}"
        ) from error
    if any(part.is_meta for part in model.buffers()):  # buffers that are computed, not stored
        model = build(options, "model", trust)
        model.load_state_dict(weights)
    return model


def check_kinds(path: str | Path, weights: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> None:
    """Refuse integers where floating-point weights belong, and the reverse, which torch would convert.

    Raises:
        InputError: names the first such weight.
    """
    for name, value in weights.items():
        kind = needed[name].dtype if name in needed else value.dtype
        if value.is_floating_point() != kind.is_floating_point:
            raise InputError(f"{path} is damaged: its weight {name} is {value.dtype}, needed is {kind}")


@contextmanager
def _registering_at_most(number: int) -> Iterator[None]:
    """Stop a model whose options ask for more layers than its weights can be of."""
    left = number

    def count(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise InputError(
                f"the checkpoint describes a model of more than {number} parts, but has no weights for it"
            )

    handles = [
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
