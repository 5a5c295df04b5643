"""What an evaluation reads: the references of result files, and the data a checkpoint captions.

Both are of the data that are given, or else of those that the checkpoint was trained on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from captioning import checkpoint
from captioning.data import CaptionDataModule, read_coco
from captioning.errors import InputError
from captioning.evaluation.references import References
from captioning.features import kind_of
from captioning.metrics import scored_tokens


class GivenData(NamedTuple):
    """Data that a user names, instead of those of a checkpoint.

    options: (features) -> plain options of the datamodule, which refer to a checkpoint's features.
    build: makes what options with a `_target_` name.
    """

    options: Callable[[Mapping[str, Any]], dict[str, Any]]
    build: Callable[..., Any]


def read_references(
    data: GivenData | None,
    checkpoints: Sequence[str] = (),
    coco: tuple[str, str] | None = None,
    *,
    split: str,
    trust: Sequence[str] = (),
) -> References:
    """Read the references of result files; no features are needed.

    Args:
        data: whose references; None for the data of the first checkpoint.
        checkpoints: files or run folders.
        coco: a captions file of COCO and its folder of images; the other two are then not read.
        split: which images.
        trust: see `checkpoint.load`.

    Raises:
        InputError: none of the three is given, there is no such file or split, or the checkpoint's data
            cannot be read.
    """
    if coco is not None:
        path, images = coco
        if not Path(path).is_file():
            raise InputError(f"references={path} is not a file; give the COCO captions file of these images")
        return References.read(Path(path).name, partial(read_coco, path, images, split), split)
    if data is not None:
        options = data.options({"path": ""})  # the features are not read
        if options.get("prepare"):
            data.build(options["prepare"])()
        tokenizer = data.build(options["tokenizer"])
        tokens = scored_tokens(options["language"], tokenizer.unit, tokenizer)
        return References.read(options["name"], data.build(options["reader"]), split, tokens)
    if not checkpoints:
        raise InputError("no references: give references=captions.json, data=… or checkpoint=…")
    file = checkpoint.locate(checkpoints[0], first=checkpoint.BEST)
    metadata = checkpoint.read(file)["captioning"]
    options = _described_data(metadata)
    tokenizer = checkpoint.build_vocabulary(metadata, file, trust=trust).tokenizer
    tokens = scored_tokens(options["language"], tokenizer.unit, tokenizer)
    with _remedy_for_own_data():
        reader = checkpoint.build_reader(options["reader"], trust=trust)
        return References.read(options["name"], reader, split, tokens)


def references_of(datamodule: CaptionDataModule, split: str) -> References:
    """Return the references of a datamodule that is set up, over the tokens of its vocabulary."""
    tokenizer = datamodule.tokenizer
    tokens = scored_tokens(datamodule.language, tokenizer.unit, tokenizer)
    records = [record for records in datamodule.records.values() for record in records]
    return References.of(str(datamodule.name), records, split, tokens)


def datamodule_of(
    loaded: checkpoint.Loaded,
    data: GivenData | None = None,
    *,
    split: str,
    features_path: str | None = None,
    trust: Sequence[str] = (),
) -> CaptionDataModule:
    """Build and set up a datamodule with the words of a checkpoint.

    Args:
        loaded: the checkpoint.
        data: whose images; None for those of the checkpoint's own data.
        split: whose features must be there.
        features_path: a feature cache; None for the one that the data name.
        trust: see `checkpoint.load`.

    Raises:
        InputError: a portable file without `data`, no feature file, or features of another kind than the
            model was trained on.
    """
    metadata = loaded.metadata
    options = _described_data(metadata) if data is None else data.options(metadata["features"])
    path = Path(features_path or options["features_path"])
    if not path.exists():  # a file, or a folder of shards
        moved = "; if it moved since training, give features_path=…" if data is None else ""
        raise InputError(f"there is no feature file {path}; make it with python -m captioning.extract{moved}")
    overrides = {
        "features_path": str(path),
        "feature_splits": [split],
        "provenance": kind_of(metadata["provenance"]),
        "vocabulary": loaded.vocabulary,
        "tokenizer": None,  # that of the vocabulary
    }
    build = partial(checkpoint.build_datamodule, trust=trust) if data is None else data.build
    with _remedy_for_own_data() if data is None else nullcontext():
        datamodule: CaptionDataModule = build(options, **overrides)
        datamodule.prepare_data()
        datamodule.setup()
    return datamodule


def _described_data(metadata: Mapping[str, Any]) -> dict[str, Any]:
    if "data" not in metadata:
        raise InputError("a portable file brings no data; give data=… and features=…")
    options: dict[str, Any] = metadata["data"]
    return options


@contextmanager
def _remedy_for_own_data() -> Iterator[None]:
    """Add what the user can do to the message of an error in a checkpoint's own data."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{error}; the checkpoint's data can't be used as it says: give data=… (and features=… if they "
            "differ)"
        ) from error
