"""A captioner in one file: a checkpoint that brings the weights of its extractor along.

Everything that reads a checkpoint reads this file; see `captioning.checkpoint` for what it may name. Its
metadata has further entries:

    extractor_state   the tensors that the extractor uses, by name
    decoding          options of the decoder to be used unless another is named
    card              what a reader should know: data, licence, scores, limits

and lacks what only training needs: data, objective, optimizer, schedule. In half precision matrices and
kernels are float16. Vectors stay float32: they are few, and the variances of norms span more powers of ten
than float16 has. The rounding changed up to four captions in a thousand (notebooks/RESULTS.md).
"""

import inspect
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioning import checkpoint
from captioning.errors import InputError
from captioning.files import atomic_write, is_file_name, weights_name

SUFFIX = ".captioner"
BUNDLED = Path(__file__).with_name(f"bundled{SUFFIX}")
_KEPT = ("format", "model", "words", "tokenizer", "provenance")


def default_path() -> Path:
    """Return the path of the captioner that comes with the package.

    Raises:
        InputError: this installation has none.
    """
    if not BUNDLED.is_file():
        raise InputError(
            f"no captioner comes with this installation (there is no {BUNDLED}); give checkpoint=<run folder "
            f"or {SUFFIX} file>, or make it: captioning train experiment=bundled, then captioning export "
            f"checkpoint=<its run folder> card=flickr8k output={BUNDLED}"
        )
    return BUNDLED


def write(
    path: str | Path,
    content: Mapping[str, Any],
    extractor: Any,
    *,
    decoding: Mapping[str, Any],
    card: Mapping[str, Any],
    half: bool = True,
    trust: Sequence[str] = (),
) -> None:
    """Write a portable file. The same captioner gives the same bytes.

    Args:
        path: the file.
        content: of a checkpoint, as `checkpoint.read` returns it.
        extractor: as `build_extractor` builds it for this checkpoint.
        decoding: plain options of the decoder to be used unless another is named.
        card: plain containers.
        half: store matrices and kernels as float16; else captions stay those of the run to the last bit.
        trust: packages of the checkpoint's own classes.

    Raises:
        InputError: the extractor has no network, or cannot be given its weights again.
    """
    metadata = content["captioning"]
    features = metadata["features"]
    options = dict(features["extractor"])
    if not hasattr(extractor, "used_tensors"):
        raise InputError(
            f"{options['_target_']} has no network that a portable file could bring along; needed is a "
            "subclass of captioning.features.FrozenExtractor, which computes features from pictures"
        )
    # Names without folders: where files lay on this machine is nobody else's business.
    options = checkpoint.renamed_weights(options, weights_name)
    portable = {
        **{key: metadata[key] for key in _KEPT},
        "features": {"extractor": options, "path": Path(features["path"]).name},
        "extractor_state": _copied(extractor.used_tensors(), half),
        "decoding": dict(decoding),
        "card": dict(card),
    }
    weights = {name: part for name, part in content["state_dict"].items() if name.startswith("model.")}
    whole = {"captioning": portable, "state_dict": _copied(weights, half)}
    build_extractor(portable, trust=trust)  # better refused here than by whoever gets the file
    buffer = io.BytesIO()  # given a path, torch would write the file's name into the file
    torch.save(whole, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def build_extractor(
    metadata: Mapping[str, Any], *, weights: str | None = None, trust: Sequence[str] = ()
) -> Any:
    """Build the extractor that a checkpoint's features came from, with the weights that the file may bring.

    Args:
        metadata: of the checkpoint.
        weights: where the extractor's weights lie; None for those of the file, or the place it names.
        trust: packages whose extractors are allowed as well.

    Raises:
        InputError: see `checkpoint.build`; weights that are missing or do not fit.
    """
    options = dict(metadata["features"]["extractor"])
    state = metadata.get("extractor_state")
    if weights:
        if "weights" not in _parameters(checkpoint.build(options, "extractor", trust, partial=True)):
            raise InputError(
                f"weights={weights} can't be used: {options['_target_']} has no weights of its own; put each "
                "file where the run names it, or export the run to a portable file, which brings them along"
            )
        options, state = {**options, "weights": weights}, None
    if not state:
        checkpoint.renamed_weights(options, _checked)
        return checkpoint.build(options, "extractor", trust)
    if not isinstance(state, Mapping) or not all(isinstance(part, Tensor) for part in state.values()):
        raise InputError("the file's extractor_state is no mapping of tensors; export it again")
    if broken := [name for name, part in state.items() if not part.isfinite().all()]:
        raise InputError(f"the file's extractor_state holds numbers that are not finite, in {broken[0]}")
    # Hydra takes no tensors among its arguments.
    build = checkpoint.build(options, "extractor", trust, partial=True)
    if "state" not in _parameters(build):
        raise InputError(
            f"{options['_target_']} cannot be given the weights of a portable file: its constructor needs "
            "the argument state; see captioning/features/frozen.py"
        )
    try:
        extractor = build(state=state)
    except InputError:
        raise
    except Exception as error:  # whatever a constructor makes of options that are not its own
        raise InputError(f"the file's extractor can't be built as it says: {error!r:.300}") from error
    if missing := sorted(extractor.used_tensors().keys() - state.keys()):
        raise InputError(
            f"the file lacks {len(missing)} of the tensors that {options['_target_']} uses, first "
            f"{missing[0]}; this version of torchvision or timm may name them otherwise: export it again"
        )
    return extractor


def default_decoding(metadata: Mapping[str, Any]) -> Any:
    """Return the options of a portable file's decoder; `beam` for a run, whose own is for its validation."""
    return metadata["decoding"] if "card" in metadata else "beam"


def _parameters(build: Any) -> Mapping[str, Any]:
    return inspect.signature(build.func).parameters


def _checked(weights: str) -> str:
    if is_file_name(weights) and not Path(weights).is_file():
        raise InputError(
            f"there is no weights file {weights}, which this captioner's features come from; put it there, "
            "or give weights=<where it is now>"
        )
    return weights


def _copied(state: Mapping[str, Tensor], half: bool) -> dict[str, Tensor]:
    # Copies: torch would save the whole storage of a view.
    return {name: (_half(part) if half else part).cpu().contiguous().clone() for name, part in state.items()}


def _half(part: Tensor) -> Tensor:
    """Round a float32 matrix or kernel to float16 where it fits; leave everything else as it is."""
    half = part.half() if part.dtype == torch.float32 and part.squeeze().dim() > 1 else part
    return half if half.isfinite().all() else part
