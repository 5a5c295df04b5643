"""Where checkpoints lie, and reading one with everything checked that later code relies on."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioning.checkpoint.archive import check_archive
from captioning.errors import InputError
from captioning.tokenizers import Words

FORMAT = 3
BEST, LAST = "best.ckpt", "last.ckpt"

_PARTS = {  # of the metadata: what a part must be where it is there
    **dict.fromkeys(("model", "data", "features", "provenance", "decoding", "card", "extractor_state"), dict),
    "tokenizer": dict,
    **dict.fromkeys(("objective", "optimizer", "scheduler", "objective_state", "logged_sums"), dict),
    **dict.fromkeys(("words", "history", "cuda_random_state", "other_processes"), list),
}


class Metadata(dict[str, Any]):
    """The metadata of a checkpoint; a part that it lacks is named together with the file."""

    def __init__(self, parts: Mapping[str, Any], path: str | Path) -> None:
        super().__init__(parts)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise InputError(
            f"{self._path} does not say its {key!r}, which is needed here; use another checkpoint"
        )


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


def locate_last(path: str | Path) -> Path:
    """Find the checkpoint that a run goes on from: a file itself, or the last one of a run folder.

    Raises:
        InputError: there is none; the best epoch does not stand in for it.
    """
    folder = Path(path).expanduser() / "checkpoints"
    if not folder.is_dir():
        return locate(path)
    last = folder / LAST
    epochs = sorted(folder.glob("epoch*.ckpt"), key=lambda file: (len(file.name), file.name))
    found = last if last.is_file() else epochs[-1] if epochs else None
    if found is None:
        raise InputError(
            f"{path} has no checkpoint to go on from, neither {LAST} nor that of an epoch; give the file of "
            "another one, such as resume=<run folder>/checkpoints/best.ckpt"
        )
    return found


def read(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint file as tensors and plain containers; `captioning` in it is a `Metadata`.

    Raises:
        InputError: no such file, not a checkpoint, damaged, or not one of this project and version.
    """
    path = locate(path)
    check_archive(path)
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
    if metadata["format"] == 2:
        metadata = _with_tokenizer(metadata)
    if metadata["format"] != FORMAT:
        raise InputError(
            f"{path} has format {metadata['format']!r}, needed is {FORMAT}: it was written by another "
            "version of captioning, whose parameters have other names; train again, or use that version"
        )
    content = {**content, "captioning": Metadata(metadata, path)}
    _check_parts(content, path)
    return content


def _with_tokenizer(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Add what format 2 took for granted: words, of English captions."""
    added: dict[str, Any] = {"format": FORMAT, "tokenizer": Words().options()}
    if isinstance(metadata.get("data"), dict):
        added["data"] = {**metadata["data"], "language": "en"}
    return {**metadata, **added}


def _check_parts(content: Mapping[str, Any], path: Path) -> None:
    metadata = content["captioning"]
    for part, kind in _PARTS.items():
        if part in metadata and not isinstance(metadata[part], kind):
            found = type(metadata[part]).__name__
            raise InputError(f"{path} is damaged: its {part} is a {found}, needed is a {kind.__name__}")
    for part, needed in (("features", "extractor"), ("data", "reader")):
        if part in metadata and not isinstance(metadata[part].get(needed), dict):
            raise InputError(f"{path} is damaged: its {part} names no {needed}")
    if not all(map(_is_text, metadata.get("words", []))):
        raise InputError(f"{path} is damaged: its words are not all texts of whole characters")
    weights = content.get("state_dict")
    if not isinstance(weights, dict) or not weights:
        raise InputError(f"{path} holds no weights; use a checkpoint that captioning train has written")
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(f"{path} is damaged: its weight {name!s:.80} is a {type(value).__name__}")
        if value.is_floating_point() and not value.isfinite().all():
            raise InputError(
                f"{path} holds numbers that are not finite in {name}: the training had broken down; use the "
                "checkpoint of an earlier epoch"
            )


def _is_text(word: Any) -> bool:
    # Half of a surrogate pair can't be written to a file of captions.
    return isinstance(word, str) and not any("\ud800" <= letter <= "\udfff" for letter in word)


def check_resumable(content: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint that a training cannot go on from.

    Args:
        content: as `read` returns it.
        path: for messages.

    Raises:
        InputError: names what is missing or of another kind.
    """
    state = {"loops": dict, "callbacks": dict, "optimizer_states": list, "lr_schedulers": list}
    can_be_empty = "callbacks", "lr_schedulers", "cuda_random_state", "objective_state", "history"
    drawn = {"random_state": Tensor, "cuda_random_state": list, "objective_state": dict}
    metadata = content["captioning"]
    parts: list[tuple[Any, dict[str, Any]]] = [(content, state), (metadata, {**drawn, "history": list})]
    parts += [(process, drawn) for process in metadata.get("other_processes", [])]
    for holder, kinds in parts:
        for part, kind in kinds.items():
            found = holder.get(part) if isinstance(holder, dict) else None
            if found is None or isinstance(found, (list, dict)) and not found and part not in can_be_empty:
                problem = f"it holds no {part}, which say where its training stood"
            elif not isinstance(found, kind):
                problem = f"its {part} is {found!r:.40}, needed is a {kind.__name__}"
            else:
                continue
            raise InputError(
                f"{path} can't be resumed: {problem}; give start_from= to begin a training with its "
                "weights and words"
            )
    for number, optimizer in enumerate(content["optimizer_states"]):
        groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
        if not (isinstance(groups, list) and isinstance(optimizer.get("state"), dict)):
            raise InputError(f"{path} can't be resumed: its optimizer {number} has no state and param_groups")
        for group in groups:
            rate = group.get("lr") if isinstance(group, dict) else None
            if not (isinstance(rate, (int, float)) and math.isfinite(rate)):
                raise InputError(f"{path} can't be resumed: its learning rate is {rate!r:.40}")
            # Plain SGD remembers nothing; these are the options of averages over the steps.
            averages = {"betas", "alpha", "rho"} & group.keys()
            if averages and content.get("global_step") and not optimizer["state"]:
                raise InputError(f"{path} can't be resumed: its optimizer {number} has lost its state")
    for epoch in content["captioning"]["history"]:
        numbers = epoch.values() if isinstance(epoch, dict) else [None]
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
            raise InputError(f"{path} can't be resumed: its history holds {str(epoch)[:80]}")
    trained(content, path)


def trained(content: Mapping[str, Any], path: str | Path) -> tuple[int, int]:
    """Return how far a training had come: whole epochs, and batches of the one under way.

    Raises:
        InputError: the checkpoint does not say so.
    """
    try:
        loop = content["loops"]["fit_loop"]
        epochs, batches = (loop[key]["current"] for key in ("epoch_progress", "epoch_loop.batch_progress"))
        counts = epochs["processed"], batches["processed"] if epochs["started"] > epochs["processed"] else 0
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} does not say how far it was trained ({error!r})") from error
    if not all(type(count) is int and count >= 0 for count in counts):
        raise InputError(f"{path} does not say how far it was trained, but {counts}")
    return counts
