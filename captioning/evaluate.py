"""Score a model, a result file, or compare two: `python -m captioning.evaluate checkpoint=runs/… split=test`.

Writes into the run folder, each file whole or not at all: `captions.json` (COCO results format),
`scores.json`, `images.csv`; for `compare=[a.json,b.json]` the latter two and `comparison.html`. The exit
status is 2 where a metric that was asked for could not be had; everything else is written all the same.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.progress import track
from rich.table import Table as Printed
from rich.text import Text

from captioning import checkpoint, comparison, results
from captioning.checkpoint import Loaded
from captioning.data import CaptionDataModule
from captioning.data.annotations import Annotated, read_coco
from captioning.decoding import Decoded
from captioning.entry import build_decoder, command
from captioning.errors import InputError
from captioning.predictor import load_members
from captioning.results import Evaluation

log = logging.getLogger(__name__)

_BEST = ("best.ckpt", "last.ckpt")


class References(NamedTuple):
    """What captions are held against: a split's records by image id, and the training captions if known."""

    name: str
    records: dict[str, Annotated]
    training: list[str]

    @classmethod
    def of(cls, name: str, records: list[Annotated], split: str) -> "References":
        """Keep one split's records and the training captions.

        Raises:
            InputError: there is no such split.
        """
        chosen = {record.image_id: record for record in records if record.split == split}
        if not chosen:
            splits = ", ".join(sorted({record.split for record in records})) or "nothing"
            raise InputError(f"{name} has no split {split!r}; it has {splits}: choose one with split=")
        training = [text for record in records if record.split == "train" for text in record.captions]
        return cls(f"{name} {split}", chosen, training)

    @property
    def captions(self) -> dict[str, tuple[str, ...]]:
        """Give the reference captions by image id."""
        return {image_id: record.captions for image_id, record in self.records.items()}


@command("evaluate")
def main(config: DictConfig) -> None:
    """Run the command."""
    check_options(config)
    if config.compare:
        evaluations = compare_files(config)
    elif config.results:
        evaluations = [evaluate_file(config)]
    else:
        evaluations = [evaluate_model(config)]
    log.info("everything is in %s", config.output_dir)
    unavailable = {metric: why for e in evaluations for metric, why in e.unavailable.items()}
    for metric, why in unavailable.items():
        print(f"error: no {metric}: {why}", file=sys.stderr)
    if unavailable:
        raise SystemExit(2)


def check_options(config: DictConfig) -> None:
    """Refuse combinations of options that mean nothing, before any work is done."""
    if config.results and config.compare:
        raise InputError("results= scores one file and compare= two; give one of them")
    if not (config.results or config.compare or config.checkpoint):
        raise InputError("nothing to evaluate: give checkpoint=…, results=a.json or compare=[a.json,b.json]")
    if config.compare and (isinstance(config.compare, str) or len(config.compare) != 2):
        raise InputError(f"compare={config.compare} must be a list of two files: compare=[a.json,b.json]")
    results.check_metrics(config.metrics)
    names = [f"bleu_{n}" if metric == "bleu" else metric for metric in config.metrics for n in range(1, 5)]
    if config.compare and config.page_metric not in names:
        choice = ", ".join(dict.fromkeys(names))
        raise InputError(f"page_metric={config.page_metric} is not scored here; it is one of {choice}")


def evaluate_model(config: DictConfig) -> Evaluation:
    """Caption a split with a checkpoint's model; write and score the captions."""
    loaded = load_members(_paths(config), hard_context=config.hard_context)
    datamodule = build_data(config, loaded)
    records = [record for split in datamodule.records.values() for record in split]
    references = References.of(str(datamodule.name), records, config.split)
    torch.manual_seed(config.seed)
    captions, milliseconds = caption_split(config, loaded, datamodule)
    if empty := [image_id for image_id, text in captions.items() if not text.strip()]:
        log.warning("%d captions are empty, first that of image %s", len(empty), empty[0])
    results.write_text(Path(config.output_dir) / "captions.json", results.as_json(captions))
    evaluation = evaluate(config, str(config.checkpoint), captions, references)
    said = {
        "decoding": OmegaConf.to_container(config.decoding, resolve=True),
        "milliseconds_per_image": round(milliseconds, 3),
    }
    write_scores(config, [evaluation], references, said)
    log.info("%.2f ms an image to decode", milliseconds)
    return evaluation


def _paths(config: DictConfig) -> list[str]:
    """List the checkpoints: one, or the members of an ensemble."""
    given = config.checkpoint
    return [str(path) for path in given] if OmegaConf.is_config(given) else [str(given)]


def build_data(config: DictConfig, loaded: Loaded) -> CaptionDataModule:
    """Build the datamodule with the checkpoint's words; the features must be of the kind it learnt from."""
    said = loaded.description
    own = config.get("data") is None
    if not own and config.get("features") is None:
        with open_dict(config):
            config.features = said["features"]
    data: Any = said["data"] if own else OmegaConf.to_container(config.data, resolve=True)
    path = Path(config.features_path or data["features_path"])
    moved = "; if it moved since training, give features_path=…" if own else ""
    if not path.is_file():
        raise InputError(f"there is no feature file {path}; make it with python -m captioning.extract{moved}")
    # The precision of the extraction is no difference of kind.
    provenance = {key: value for key, value in said["provenance"].items() if key != "precision"}
    build: Callable[..., CaptionDataModule] = checkpoint.build if own else instantiate
    try:
        datamodule = build(
            {**data, "features_path": str(path), "feature_splits": [config.split]},
            provenance=provenance,
            words=loaded.vocabulary.words,
        )
        datamodule.setup()
    except (InputError, InstantiationException) as error:  # the latter for options of an older version
        raise _with_remedy(error, own) from error
    return datamodule


def _with_remedy(error: Exception, own: bool) -> Exception:
    """Say what helps where the checkpoint's own data config doesn't."""
    if not own:
        return error
    said = str(error) if isinstance(error, InputError) else repr(error.__cause__)
    return InputError(
        f"{said}; the checkpoint's data can't be used as it says: give data=… (and features=… if they differ)"
    )


@torch.no_grad()
def caption_split(
    config: DictConfig, loaded: Loaded, datamodule: CaptionDataModule
) -> tuple[dict[str, str], float]:
    """Caption every image of the split; also the milliseconds an image took from features to text."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = loaded.model.to(device)
    decoding: Callable[..., Decoded] = build_decoder(config.decoding, loaded.vocabulary)
    captions: dict[str, str] = {}
    seconds = 0.0
    batches = datamodule.image_dataloader(config.split, sealed=True)
    for batch in track(batches, "captioning", console=Console(stderr=True), transient=True):
        started = time.perf_counter()
        mask = None if batch.mask is None else batch.mask.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.autocast):
            decoded = decoding(model, batch.features.to(device), mask)
        texts = [loaded.vocabulary.decode(row) for row in decoded.tokens.tolist()]
        seconds += time.perf_counter() - started
        captions.update(zip(batch.image_ids, texts, strict=True))
    return captions, 1000 * seconds / len(captions)


def read_references(config: DictConfig) -> References:
    """Read references from a COCO captions file, the data config, or a checkpoint's; without features."""
    if config.references:
        records = read_coco(config.references, config.images or "", config.split)
        return References.of(Path(config.references).name, records, config.split)
    if config.get("data") is not None:
        return References.of(config.data.name, instantiate(config.data.reader)(), config.split)
    if not config.checkpoint:
        raise InputError("no references: give references=captions.json, data=… or checkpoint=…")
    data = checkpoint.read(checkpoint.locate(_paths(config)[0], _BEST))["captioning"]["data"]
    try:
        return References.of(data["name"], checkpoint.build(data["reader"])(), config.split)
    except (InputError, InstantiationException) as error:
        raise _with_remedy(error, own=True) from error


def evaluate(config: DictConfig, name: str, captions: dict[str, str], references: References) -> Evaluation:
    """Score one system's captions."""
    return results.evaluate(
        name,
        captions,
        references.captions,
        metrics=list(config.metrics),
        training=references.training,
        seed=config.seed,
        resamples=config.resamples,
    )


def evaluate_file(config: DictConfig) -> Evaluation:
    """Score a result file."""
    references = read_references(config)
    captions = results.read_results(config.results, references.records.keys(), allow_empty=config.allow_empty)
    [name] = comparison.names_of([config.results])
    evaluation = evaluate(config, name, captions, references)
    write_scores(config, [evaluation], references, {})
    return evaluation


def compare_files(config: DictConfig) -> list[Evaluation]:
    """Score two result files, test their difference, write the page."""
    references = read_references(config)
    read = [
        results.read_results(path, references.records.keys(), allow_empty=config.allow_empty)
        for path in config.compare
    ]
    names = comparison.names_of(list(config.compare))
    evaluations = [evaluate(config, *pair, references) for pair in zip(names, read, strict=True)]
    tables = write_scores(config, evaluations, references, {})
    metric = str(config.page_metric)
    if any(metric not in evaluation.scores for evaluation in evaluations):
        log.warning("no page, as there is no %s to sort it by", metric)
        return evaluations
    paths = {image_id: record.path for image_id, record in references.records.items()}
    examples = comparison.pair(evaluations, references.captions, paths, metric)
    chosen = comparison.choose(examples, config.page_images)
    text = comparison.page(
        chosen, names=names, data=references.name, metric=metric, tables=tables, total=len(examples)
    )
    results.write_text(Path(config.output_dir) / "comparison.html", text)
    return evaluations


def write_scores(
    config: DictConfig, evaluations: list[Evaluation], references: References, said: dict[str, Any]
) -> list[comparison.Table]:
    """Print the tables and write scores.json and images.csv; gives the tables back."""
    paired = {}
    if len(evaluations) == 2:
        paired = results.compare(*evaluations, seed=config.seed, resamples=config.resamples)
    tables = [comparison.score_table(evaluations, paired), comparison.diversity_table(evaluations)]
    if evaluations[0].lengths:
        tables.append(comparison.length_table(evaluations))
    content = {
        "references": references.name,
        "num_images": len(references.records),
        "units": "scores and intervals (95 %) are times 100, diversity shares are fractions",
        "document_frequencies": "the references of these images",
        "systems": [{"name": e.name, **results.plain(e)} for e in evaluations],
        "paired": {
            metric: {"difference": results.percent(test.difference), "p_value": round(test.p_value, 6)}
            for metric, test in paired.items()
        },
        "options": {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in config.items()
            if key not in ("decoding", "data", "features")
        },
        **said,
    }
    folder = Path(config.output_dir)
    results.write_text(folder / "images.csv", comparison.csv_text(evaluations))
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    results.write_text(folder / "scores.json", f"{text}\n")
    for table in tables:
        show(table)
    return tables


def show(table: comparison.Table) -> None:
    """Print a table on the terminal."""
    printed = Printed(title=Text(table.title), title_justify="left")
    for place, heading in enumerate(table.headings):
        printed.add_column(Text(heading), justify="right" if place else "left")
    for row in table.rows:
        printed.add_row(*map(Text, row))
    Console().print(printed)


if __name__ == "__main__":
    main()
