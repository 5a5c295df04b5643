"""Score a model, a result file, or compare two: `python -m captioning.evaluate checkpoint=runs/… split=test`.

Writes `scores.json` and `images.csv` into the run folder; for a model also `captions.json` (COCO results
format) and `alternatives.json` where there are any; for `compare=[a.json,b.json]` also `comparison.html`. The
exit status is 2 where a metric that was asked for is not available; everything else is written all the same.
"""

from captioning.cli import as_list, command, quick_help

quick_help(__name__, "evaluate")  # before the imports that take seconds

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from captioning import checkpoint
from captioning.data import CaptionDataModule, read_coco
from captioning.errors import InputError
from captioning.evaluation import (
    Evaluation,
    References,
    caption_split,
    check_options,
    compared_files,
    read_systems,
    score,
    write_captions,
    write_page,
    write_report,
)
from captioning.evaluation.report import print_table
from captioning.features import kind_of
from captioning.metrics import scored_tokens
from captioning.predictor import load_members
from captioning.training.assembly import build_decoder, data_options, own_options, plain

log = logging.getLogger(__name__)

# Resolved options of `data=`, given the features of a checkpoint; None where no `data=` is given.
DataOptions = Callable[[Mapping[str, Any]], dict[str, Any]] | None


@command("evaluate")
def main(config: DictConfig) -> list[Evaluation]:
    options = own_options(config, groups=("decoding", "data", "features"))
    metrics, trust = as_list(config.metrics), as_list(config.trust)
    check_options(options)
    sides = compared_files(options["compare"]) if options["compare"] else (as_list(config.results),)
    files, checkpoints = [file for side in sides for file in side], as_list(config.checkpoint)
    data: DataOptions = partial(data_options, config) if "data" in config else None
    frequencies = {"source": config.document_frequencies, "save_to": config.save_document_frequencies}
    details: dict[str, Any] = {}
    if files or config.people:
        references = (
            read_coco_references(config.references, config.images or "", config.split)
            if config.references
            else read_references(data, checkpoints, trust, config.split)
        )
        if config.people:
            held_out, references = references.hold_one_out()
            captions = {"people": held_out}
        else:
            captions = read_systems(files, references, allow_empty=config.allow_empty)
        references = references.with_frequencies(**frequencies)
    else:
        overrides = plain(config.model_options) if config.model_options else None
        loaded = load_members(checkpoints, trust=trust, model_options=overrides)
        datamodule = evaluation_data(
            loaded, data, trust, split=config.split, features_path=config.features_path
        )
        records = [record for split in datamodule.records.values() for record in split]
        tokenizer = loaded.vocabulary.tokenizer
        tokens = scored_tokens(datamodule.language, tokenizer.unit, tokenizer)
        references = References.of(str(datamodule.name), records, config.split, tokens)
        references = references.with_frequencies(**frequencies)
        torch.manual_seed(config.seed)
        found = caption_split(
            loaded.model,
            loaded.vocabulary,
            _progress(datamodule.image_dataloader(config.split, without_captions=True)),
            build_decoder(config.decoding, loaded.vocabulary),
            autocast=config.autocast,
        )
        write_captions(config.output_dir, found)
        captions = {str(config.checkpoint): {key: found.captions[key] for key in references.records}}
        milliseconds = round(found.milliseconds_per_image, 3)
        details = {"decoding": plain(config.decoding), "milliseconds_per_image": milliseconds}
    num_first = len(sides[0]) if options["compare"] and len(files) > 2 else None
    return report(config.output_dir, captions, references, metrics, options, details, num_first)


def report(
    folder: str,
    captions: Mapping[str, dict[str, str]],
    references: References,
    metrics: Sequence[str],
    options: Mapping[str, Any],
    details: Mapping[str, Any],
    num_first: int | None,
) -> list[Evaluation]:
    """Score the systems, print their tables and write everything into the run folder.

    `num_first` is that of `write_report`; the page then shows the first run of each setting.

    Raises:
        SystemExit: with status 2, after all that, where a metric is not available.
    """
    resampling = {"seed": options["seed"], "resamples": options["resamples"]}
    training = [text for texts in references.training for text in texts]
    evaluations = [
        score(
            texts,
            references.captions,
            metrics=metrics,
            name=name,
            training=training,
            frequencies=references.frequencies,
            tokens=references.tokens,
            **resampling,
        )
        for name, texts in captions.items()
    ]
    written: dict[str, Any] = {"options": options, "details": details, "num_first": num_first}
    tables = write_report(Path(folder), evaluations, references, **resampling, **written)
    for table in tables:
        print_table(table)
    if not references.tokens.is_english:
        log.info("scores are over %s, and compare only with others over the same", references.tokens)
    if references.frequencies and "cider_d" in evaluations[0].scores:
        log.info("CIDEr-D weighs n-grams by their frequencies in %s", references.frequencies.source)
    if options["compare"] and options["page_images"]:
        page = {"metric": options["page_metric"], "limit": options["page_images"]}
        pair = [evaluations[0], evaluations[num_first or 1]]
        write_page(Path(folder), pair, references, tables, several_runs=num_first is not None, **page)
    log.info("everything is in %s", folder)
    unavailable = {metric: why for e in evaluations for metric, why in e.unavailable.items()}
    for metric, why in unavailable.items():
        print(f"error: no {metric}: {why}", file=sys.stderr)
    if unavailable:
        raise SystemExit(2)
    return evaluations


def read_coco_references(path: str, images: str, split: str) -> References:
    """Read the references of result files from a COCO captions file."""
    return References.read(Path(path).name, partial(read_coco, path, images, split), split)


def read_references(
    data: DataOptions, checkpoints: Sequence[str], trust: Sequence[str], split: str
) -> References:
    """Read the references of result files from the data that are given, or those of a checkpoint.

    Raises:
        InputError: neither is given, or the checkpoint's data cannot be read.
    """
    if data is not None:
        options = data({"path": ""})  # the features are not read
        if options.get("prepare"):
            instantiate(options["prepare"])()
        tokenizer = instantiate(options["tokenizer"])
        tokens = scored_tokens(options["language"], tokenizer.unit, tokenizer)
        return References.read(options["name"], instantiate(options["reader"]), split, tokens)
    if not checkpoints:
        raise InputError("no references: give references=captions.json, data=… or checkpoint=…")
    path = checkpoint.locate(checkpoints[0], first=checkpoint.BEST)
    metadata = checkpoint.read(path)["captioning"]
    described = described_data(metadata)
    tokenizer = checkpoint.build_vocabulary(metadata, path, trust=trust).tokenizer
    tokens = scored_tokens(described["language"], tokenizer.unit, tokenizer)
    with remedy_for_data():
        reader = checkpoint.build_reader(described["reader"], trust=trust)
        return References.read(described["name"], reader, split, tokens)


def described_data(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the data that a checkpoint was trained on.

    Raises:
        InputError: it is a portable file, which does not say where data lie.
    """
    if "data" not in metadata:
        raise InputError("a portable file brings no data; give data=… and features=…")
    options: dict[str, Any] = metadata["data"]
    return options


def evaluation_data(
    loaded: checkpoint.Loaded,
    data: DataOptions,
    trust: Sequence[str],
    *,
    split: str,
    features_path: str | None,
) -> CaptionDataModule:
    """Build the datamodule with the checkpoint's words: of the data that are given, or of its own.

    Raises:
        InputError: no feature file, or features of another kind than the model was trained on.
    """
    metadata = loaded.metadata
    options = described_data(metadata) if data is None else data(metadata["features"])
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
    build = partial(checkpoint.build_datamodule, trust=trust) if data is None else instantiate
    with remedy_for_data() if data is None else nullcontext():
        datamodule: CaptionDataModule = build(options, **overrides)
        datamodule.prepare_data()
        datamodule.setup()
    return datamodule


@contextmanager
def remedy_for_data() -> Iterator[None]:
    """Add what the user can do to the message of an error in a checkpoint's own data."""
    try:
        yield
    except (InputError, InstantiationException) as error:  # the latter for options of an older version
        message = str(error) if isinstance(error, InputError) else repr(error.__cause__)
        raise InputError(
            f"{message}; the checkpoint's data can't be used as it says: give data=… (and features=… if they "
            "differ)"
        ) from error


def _progress(batches: Any) -> Any:
    return track(batches, "captioning", console=Console(stderr=True), transient=True)


if __name__ == "__main__":
    main()
