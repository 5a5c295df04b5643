"""Score a model, a result file, or compare two: `python -m captioning.evaluate checkpoint=runs/… split=test`.

Writes `scores.json` and `images.csv` into the run folder; for a model also `captions.json` (COCO results
format) and `alternatives.json` where there are any; for `compare=[a.json,b.json]` also `comparison.html`. The
exit status is 2 where a metric that was asked for is not available; everything else is written all the same.
"""

from captioning.cli import command, quick_help

quick_help(__name__, "evaluate")  # before the imports that take seconds

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from captioning import checkpoint
from captioning.checkpoint import Loaded
from captioning.data import CaptionDataModule, read_coco
from captioning.errors import InputError
from captioning.evaluation.captions import caption_split, write_captions
from captioning.evaluation.comparison import write_page
from captioning.evaluation.references import References
from captioning.evaluation.report import print_table, write_report
from captioning.evaluation.results import read_results, system_names
from captioning.evaluation.scoring import Evaluation, check_metrics, score
from captioning.predictor import load_members
from captioning.training.assembly import build_decoder, plain

log = logging.getLogger(__name__)


@command("evaluate")
def main(config: DictConfig) -> None:
    check_options(config)
    evaluations = evaluate(config)
    log.info("everything is in %s", config.output_dir)
    unavailable = {metric: why for e in evaluations for metric, why in e.unavailable.items()}
    for metric, why in unavailable.items():
        print(f"error: no {metric}: {why}", file=sys.stderr)
    if unavailable:
        raise SystemExit(2)


def evaluate(config: DictConfig) -> list[Evaluation]:
    """Score what the options name, print the tables, and write everything into the run folder."""
    folder = Path(config.output_dir)
    details: dict[str, Any] = {}
    if config.results or config.compare:
        references, captions = read_files(config)
    else:
        references, captions, details = caption_images(config)
    resampling = {"seed": config.seed, "resamples": config.resamples}
    evaluations = [
        score(
            texts,
            references.captions,
            metrics=as_list(config.metrics),
            name=name,
            training=[text for captions in references.training for text in captions],
            frequencies=references.frequencies,
            **resampling,
        )
        for name, texts in captions.items()
    ]
    options = own_options(config)
    tables = write_report(folder, evaluations, references, **resampling, options=options, details=details)
    for table in tables:
        print_table(table)
    if references.frequencies and "cider_d" in evaluations[0].scores:
        log.info("CIDEr-D weighs n-grams by their frequencies in %s", references.frequencies.source)
    if config.compare:
        write_page(
            folder, evaluations, references, tables, metric=config.page_metric, limit=config.page_images
        )
    return evaluations


def read_files(config: DictConfig) -> tuple[References, dict[str, dict[str, str]]]:
    """Read the references, and the captions of one result file or two by the systems' names."""
    references = with_frequencies(config, read_references(config))
    paths = as_list(config.compare or config.results)
    captions = {
        name: read_results(
            path,
            references.records,
            optional=references.without_captions,
            allow_empty=config.allow_empty,
        )
        for name, path in zip(system_names(paths), paths, strict=True)
    }
    return references, captions


def caption_images(config: DictConfig) -> tuple[References, dict[str, dict[str, str]], dict[str, Any]]:
    """Caption a split with a checkpoint's model and write the captions.

    Returns:
        the references, the captions that can be scored by the checkpoint's name, and details for the report.
    """
    loaded = load_members(
        as_list(config.checkpoint),
        trust=as_list(config.trust),
        model_options=plain(config.model_options) if config.model_options else None,
    )
    data = build_data(config, loaded)
    records = [record for split in data.records.values() for record in split]
    references = with_frequencies(config, References.of(str(data.name), records, config.split))
    batches = data.image_dataloader(config.split, without_captions=True)
    torch.manual_seed(config.seed)
    found = caption_split(
        loaded.model,
        loaded.vocabulary,
        track(batches, "captioning", console=Console(stderr=True), transient=True),
        build_decoder(config.decoding, loaded.vocabulary),
        autocast=config.autocast,
    )
    write_captions(config.output_dir, found)
    milliseconds = round(found.milliseconds_per_image, 3)
    details = {"decoding": plain(config.decoding), "milliseconds_per_image": milliseconds}
    scored = {image_id: found.captions[image_id] for image_id in references.records}
    return references, {str(config.checkpoint): scored}, details


def check_options(config: DictConfig) -> None:
    """Refuse options that do not go together, before any work is done."""
    if config.results and config.compare:
        raise InputError("results= scores one file and compare= two; give one of them")
    if not (config.results or config.compare or config.checkpoint):
        raise InputError("nothing to evaluate: give checkpoint=…, results=a.json or compare=[a.json,b.json]")
    pair = [] if isinstance(config.compare, str) else list(config.compare or [])
    if config.compare and (len(pair) != 2 or not all(pair)):
        raise InputError(f"compare={config.compare} must be a list of two files: compare=[a.json,b.json]")
    if config.references and not (config.results or config.compare):
        raise InputError(
            "references= goes with results= or compare=; a checkpoint brings its own, or give data="
        )
    metrics = as_list(config.metrics)
    check_metrics(metrics)
    for name in ("page_images", "resamples"):
        if type(config[name]) is not int or config[name] < 1:
            raise InputError(f"{name}={config[name]} must be a whole number from 1")
    # BLEU is four metrics on the page; the others come up four times here, which does no harm.
    names = [f"bleu_{n}" if metric == "bleu" else metric for metric in metrics for n in range(1, 5)]
    if config.compare and config.page_metric not in names:
        choice = ", ".join(dict.fromkeys(names))
        raise InputError(f"page_metric={config.page_metric} is not scored here; it is one of {choice}")


def read_references(config: DictConfig) -> References:
    """Read the references of result files: from a COCO file, the data config, or a checkpoint's data."""
    if config.references:
        reader = partial(read_coco, config.references, config.images or "", config.split)
        return References.read(Path(config.references).name, reader, config.split)
    if "data" in config:
        if config.data.get("prepare"):
            instantiate(config.data.prepare)()
        return References.read(config.data.name, instantiate(config.data.reader), config.split)
    if not config.checkpoint:
        raise InputError("no references: give references=captions.json, data=… or checkpoint=…")
    path = checkpoint.locate(as_list(config.checkpoint)[0], first=checkpoint.BEST)
    data = checkpoint.read(path)["captioning"]["data"]
    with remedy_for_data():
        reader = checkpoint.build_reader(data["reader"], trust=as_list(config.trust))
        return References.read(data["name"], reader, config.split)


def with_frequencies(config: DictConfig, references: References) -> References:
    """Add the document frequencies that the options ask for."""
    return references.with_frequencies(config.document_frequencies, save_to=config.save_document_frequencies)


def build_data(config: DictConfig, loaded: Loaded) -> CaptionDataModule:
    """Build the datamodule with the checkpoint's words.

    Raises:
        InputError: no feature file, or features of another kind than the model was trained on.
    """
    metadata, own = loaded.metadata, "data" not in config
    if own:
        options = metadata["data"]
    else:
        # Data configs refer to the features, which are those of the checkpoint unless given.
        features = {} if "features" in config else {"features": metadata["features"]}
        whole: Any = OmegaConf.to_container(config, resolve=False)
        options = plain(OmegaConf.create({**whole, **features}).data)
    path = Path(config.features_path or options["features_path"])
    if not path.is_file():
        moved = "; if it moved since training, give features_path=…" if own else ""
        raise InputError(f"there is no feature file {path}; make it with python -m captioning.extract{moved}")
    # The precision of the extraction is no difference of kind.
    provenance = {key: value for key, value in metadata["provenance"].items() if key != "precision"}
    overrides = {
        "features_path": str(path),
        "feature_splits": [config.split],
        "provenance": provenance,
        "words": loaded.vocabulary.words,
    }
    with remedy_for_data() if own else nullcontext():
        if own:
            data = checkpoint.build_data(options, trust=as_list(config.trust), **overrides)
        else:
            data = instantiate(options, **overrides)
        data.prepare_data()
        data.setup()
    return data


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


def own_options(config: DictConfig) -> dict[str, Any]:
    """Return the command's own options as plain values, without the groups."""
    # The groups stay out as they may refer to others that were not given, which cannot be resolved.
    return {
        str(key): OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for key, value in config.items()
        if key not in ("decoding", "data", "features")
    }


def as_list(value: Any) -> list[Any]:
    """Convert an option that is one value, a list of them, or nothing to a list."""
    if value is None:
        return []
    return list(value) if OmegaConf.is_list(value) else [value]


if __name__ == "__main__":
    main()
