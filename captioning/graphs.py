"""A captioner as ONNX graphs, for runtimes without PyTorch.

    backbone.onnx    images (B, 3, H, W) bytes -> features (B, R, D), rounded to float16 as in the cache
    encoder.onnx     features, and mask (B, R) where images differ in their number of regions -> memory, state
    step.onnx        tokens (B,), memory, state -> log_probs (B, V), attention (B, R) if any, next.state
    captioner.json   words and how to join them, image size, grid, a decoding, a card

B is any number, and so is the number of words before a step. Memory and state are the model's own tensors:
each input of `step.onnx` takes the output of the same name, from the encoder or, after `next.`, from the step
before. `notebooks/onnx_captioner.py` decodes with them.

Detectors and published feature files bring no `backbone.onnx`. The Attentive Translator has no graph with a
mask, because its sequence encoder runs as many steps as the mask has regions.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from captioning.decoding.decoded import word_log_probs
from captioning.errors import InputError
from captioning.features import FrozenExtractor, RegionFeatures
from captioning.files import atomic_write
from captioning.models.base import CaptionModel, Tree
from captioning.tokenizers import Tokenizer
from captioning.vocabulary import START, Vocabulary

PRECISIONS = ("float32", "int8")


def write(
    folder: str | Path,
    model: CaptionModel,
    extractor: Any,
    *,
    vocabulary: Vocabulary,
    decoding: Mapping[str, Any],
    card: Mapping[str, Any],
    precision: str = "float32",
) -> dict[str, int]:
    """Write the graphs of a captioner.

    Args:
        folder: a new or empty one.
        model: in evaluation mode.
        extractor: of the features that the model was trained on.
        vocabulary: its words go into `captioner.json`, and the `joining` of its tokenizer.
        decoding: plain options, for whoever decodes.
        card: plain containers.
        precision: `float32`, or `int8`, which quantises the matrices of encoder and step dynamically.

    Returns:
        The size of each graph in bytes, by file name.

    Raises:
        InputError: a package that is not installed, a folder that holds files, a tokenizer without a rule
            for joining, or see `export_model`.
    """
    _check(Path(folder), vocabulary.tokenizer, precision)
    joined = {"words": vocabulary.words, "joining": vocabulary.tokenizer.joining}
    about = {**joined, "decoding": dict(decoding), "card": dict(card)}
    features = torch.zeros(3, extractor.num_regions, extractor.feature_dim)
    mapped = isinstance(extractor, FrozenExtractor) and not extractor.has_boxes
    programs = export_model(model, features, masked=not mapped)
    if mapped:
        programs["backbone"] = export_backbone(extractor)
        about |= {"image_size": extractor.image_size, "grid": extractor.grid}
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        files = {name: temporary / f"{name}.onnx" for name in programs}
        for name, program in programs.items():
            # Its makers recommend dynamic quantisation for Transformers and recurrent networks only.
            save(program, files[name], "float32" if name == "backbone" else precision)
        text = json.dumps(about, ensure_ascii=False, indent=1, default=str)
        (temporary / "captioner.json").write_text(text, encoding="utf-8")
        return {path.name: path.stat().st_size for path in files.values()}


def _check(folder: Path, tokenizer: Tokenizer, precision: str) -> None:
    if missing := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise InputError(f"format=onnx needs the package {missing[0]}; run pip install 'captioning[onnx]'")
    if precision not in PRECISIONS:
        raise InputError(f"precision={precision} must be one of {', '.join(PRECISIONS)}")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"output={folder} is there already; name a new folder for the graphs")
    if tokenizer.joining is None:
        raise InputError(
            f"{type(tokenizer).__name__} has no rule for joining its tokens that goes into captioner.json; "
            "write format=captioner, or give the class `joining`"
        )


def save(program: Any, path: Path, precision: str) -> None:
    """Write what `export_model` or `export_backbone` returns as one file, weights included."""
    if precision == "int8":
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(program.model_proto, path, per_channel=True)
    else:
        program.save(path)


@torch.no_grad()
def export_model(model: CaptionModel, features: Tensor, *, masked: bool) -> dict[str, Any]:
    """Export `encoder` and `step`, each a `torch.onnx.ONNXProgram`.

    Args:
        model: in evaluation mode.
        features: (B, R, D) of two images or more; the graphs take any B, and this R.
        masked: whether the encoder has the input `mask`.

    Raises:
        InputError: torch cannot export the model.
    """
    given = {"features": features}
    if masked:
        given["mask"] = torch.ones(features.shape[:2], dtype=torch.bool)
    memory = model.encode(*given.values())
    state = model.start(memory)
    batch, tokens = {0: Dim("batch")}, torch.full((len(features),), START)
    names = list(_named(memory, "memory") | _named(state, "state"))
    encoder = _to_onnx(_Encoder(model), given, [batch] * len(given), names)
    # torch.export takes a size of 0 or 1 for a constant, so the state is that after two words.
    for _ in range(3):
        before, step = state, model.step(tokens, state, memory)
        state = step.state
    after, named_before = _named(state, "state"), _named(before, "state")
    results = ["log_probs", *([] if step.attention is None else ["attention"]), *(f"next.{k}" for k in after)]
    given = {"tokens": tokens, **_named(memory, "memory"), **named_before}
    shapes = [{**batch, **_growing(part, after.get(name, part))} for name, part in given.items()]
    return {"encoder": encoder, "step": _to_onnx(_Step(model, memory, before), given, shapes, results)}


def export_backbone(extractor: FrozenExtractor) -> Any:
    """Export images -> features, as a `torch.onnx.ONNXProgram`."""
    images = torch.zeros(2, 3, *extractor.image_size, dtype=torch.uint8)
    return _to_onnx(_Backbone(extractor), {"images": images}, [{0: Dim("batch")}], ["features"])


class _Backbone(nn.Module):
    def __init__(self, extractor: FrozenExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, *given: Tensor) -> Tensor:
        return RegionFeatures.of(self.extractor(*given)).features.half().float()  # (B, R, D)


class _Encoder(nn.Module):
    def __init__(self, model: CaptionModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *given: Tensor) -> list[Tensor]:
        memory = self.model.encode(*given)
        return _tensors((memory, self.model.start(memory)))


class _Step(nn.Module):
    def __init__(self, model: CaptionModel, memory: Tree, state: Tree) -> None:
        super().__init__()
        self.model = model
        leaves, self.spec = pytree.tree_flatten((memory, state))
        self.is_tensor = [leaf is not None for leaf in leaves]

    def forward(self, *given: Tensor) -> list[Tensor]:
        tokens, *tensors = given
        left = iter(tensors)
        leaves = [next(left) if there else None for there in self.is_tensor]
        memory, state = pytree.tree_unflatten(leaves, self.spec)
        step = self.model.step(tokens, state, memory)
        return _tensors((word_log_probs(self.model.head(step.hidden)), step.attention, step.state))


def _tensors(tree: Tree) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(tree) if leaf is not None]


def _named(tree: Tree, name: str) -> dict[str, Tensor]:
    """Name the tensors of a tree by their places, such as `memory.keys.0`, in the order of `_tensors`."""
    if tree is None or isinstance(tree, Tensor):
        return {} if tree is None else {name: tree}
    fields = getattr(tree, "_fields", range(len(tree)))
    parts = [_named(part, f"{name}.{field}") for field, part in zip(fields, tree, strict=True)]
    return {place: part for named in parts for place, part in named.items()}


def _growing(part: Tensor, after: Tensor) -> dict[int, Any]:
    """Return the dimensions in which a step makes a tensor larger: they count words."""
    sizes = enumerate(zip(part.shape, after.shape, strict=True))
    return {axis: Dim("length") for axis, (size, larger) in sizes if size != larger}


def _to_onnx(module: nn.Module, given: Mapping[str, Tensor], shapes: Sequence[Any], names: list[str]) -> Any:
    part = type(module).__name__.strip("_").lower()
    try:
        # Strict, that is, traced from Python's bytecode: otherwise `len(tensor)` becomes a constant.
        program = torch.export.export(
            module, tuple(given.values()), dynamic_shapes=(tuple(shapes),), strict=True
        )
        return torch.onnx.export(
            program, input_names=list(given), output_names=names, dynamo=True, verbose=False
        )
    except Exception as error:  # of a dozen types, each for something that a graph cannot express
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise InputError(
            f"the {part} of this model can't be exported to ONNX ({reason:.200}); "
            "write format=captioner, or use another model"
        ) from error
