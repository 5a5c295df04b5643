"""Score a model, a result file, or compare two: `python -m captioning.evaluate checkpoint=runs/… split=test`.

Writes into the run folder, each file whole or not at all: `captions.json` (COCO results format),
`scores.json`, `images.csv`; for `compare=[a.json,b.json]` the latter two and `comparison.html`. The exit
status is 2 where a metric that was asked for could not be had; everything else is written all the same.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from captioning.decoding import Decoded
from captioning.entry import build_decoder, command
from captioning.errors import InputError
from captioning.files import write_text
from captioning.predictor import further, load_members
from captioning.references import References, paths_of, read_references, with_frequencies, with_remedy
from captioning.results import Evaluation
from captioning.vocabulary import END

log = logging.getLogger(__name__)


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
    pair = [] if isinstance(config.compare, str) else list(config.compare or [])
    if config.compare and (len(pair) != 2 or not all(pair)):
        raise InputError(f"compare={config.compare} must be a list of two files: compare=[a.json,b.json]")
    if config.references and not (config.results or config.compare):
        raise InputError(
            "references= goes with results= or compare=; a checkpoint brings its own, or give data="
        )
    if isinstance(config.metrics, str):
        config.metrics = [config.metrics]
    results.check_metrics(config.metrics or [])
    if type(config.page_images) is not int or config.page_images < 1:
        raise InputError(f"page_images={config.page_images} must be a whole number from 1")
    if not (isinstance(config.resamples, int) and config.resamples >= 1 and isinstance(config.seed, int)):
        raise InputError(
            f"resamples={config.resamples} and seed={config.seed} must be whole, from 1 and 0 on"
        )
    if config.seed < 0:
        raise InputError(f"seed={config.seed} must be a whole number from 0")
    names = [f"bleu_{n}" if metric == "bleu" else metric for metric in config.metrics for n in range(1, 5)]
    if config.compare and config.page_metric not in names:
        choice = ", ".join(dict.fromkeys(names))
        raise InputError(f"page_metric={config.page_metric} is not scored here; it is one of {choice}")


def evaluate_model(config: DictConfig) -> Evaluation:
    """Caption a split with a checkpoint's model; write and score the captions."""
    loaded = load_members(paths_of(config), hard_context=config.hard_context)
    datamodule = build_data(config, loaded)
    records = [record for split in datamodule.records.values() for record in split]
    references = with_frequencies(config, References.of(str(datamodule.name), records, config.split))
    torch.manual_seed(config.seed)
    captions, others, milliseconds = caption_split(config, loaded, datamodule)
    if empty := [image_id for image_id, text in captions.items() if not text.strip()]:
        log.warning("%d captions are empty, first that of image %s", len(empty), empty[0])
    write_text(Path(config.output_dir) / "captions.json", results.as_json(captions))
    lists = Path(config.output_dir) / "others.json"
    lists.unlink(missing_ok=True)  # of an earlier run into the same folder
    if any(others.values()):
        write_text(lists, results.as_json(others))
    evaluation = evaluate(config, str(config.checkpoint), captions, references)
    said = {
        "decoding": OmegaConf.to_container(config.decoding, resolve=True),
        "milliseconds_per_image": round(milliseconds, 3),
    }
    write_scores(config, [evaluation], references, said)
    log.info("%.2f ms an image to decode", milliseconds)
    return evaluation


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
        raise with_remedy(error, own) from error
    return datamodule


@torch.no_grad()
def caption_split(
    config: DictConfig, loaded: Loaded, datamodule: CaptionDataModule
) -> tuple[dict[str, str], dict[str, list[str]], float]:
    """Caption every image of the split.

    Returns:
        captions and lists of further hypotheses by image id, and the milliseconds an image took from
        features to text.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = loaded.model.to(device)
    decoding: Callable[..., Decoded] = build_decoder(config.decoding, loaded.vocabulary)
    captions: dict[str, str] = {}
    others: dict[str, list[str]] = {}
    seconds, cut = 0.0, 0
    batches = datamodule.image_dataloader(config.split, sealed=True)
    for batch in track(batches, "captioning", console=Console(stderr=True), transient=True):
        started = time.perf_counter()
        mask = None if batch.mask is None else batch.mask.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.autocast):
            decoded = decoding(model, batch.features.to(device), mask)
        texts = [loaded.vocabulary.decode(row) for row in decoded.tokens.tolist()]
        seconds += time.perf_counter() - started
        cut += int((~(decoded.tokens == END).any(1)).sum())
        captions.update(zip(batch.image_ids, texts, strict=True))
        for row, image_id in enumerate(batch.image_ids):
            others[image_id] = [text for text, _ in further(decoded, loaded.vocabulary, row)]
    if cut:
        log.warning(
            "%d of %d captions did not end within decoding.max_words and were cut", cut, len(captions)
        )
    return captions, others, 1000 * seconds / len(captions)


def evaluate(config: DictConfig, name: str, captions: dict[str, str], references: References) -> Evaluation:
    """Score one system's captions."""
    return results.evaluate(
        name,
        captions,
        references.captions,
        metrics=list(config.metrics),
        training=[text for captions in references.training for text in captions],
        seed=config.seed,
        resamples=config.resamples,
        frequencies=references.frequencies,
    )


def evaluate_file(config: DictConfig) -> Evaluation:
    """Score a result file."""
    references = with_frequencies(config, read_references(config))
    captions = results.read_results(config.results, references.records.keys(), allow_empty=config.allow_empty)
    [name] = comparison.names_of([config.results])
    evaluation = evaluate(config, name, captions, references)
    write_scores(config, [evaluation], references, {})
    return evaluation


def compare_files(config: DictConfig) -> list[Evaluation]:
    """Score two result files, test their difference, write the page."""
    references = with_frequencies(config, read_references(config))
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
    write_text(Path(config.output_dir) / "comparison.html", text)
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
        "document_frequencies": references.frequencies.source if references.frequencies else None,
        "systems": [{"name": e.name, **results.plain(e)} for e in evaluations],
        "paired": {
            metric: {"difference": results.percent(test.difference), "p_value": round(test.p_value, 6)}
            for metric, test in paired.items()
            if not math.isnan(test.p_value)
        },
        "options": {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in config.items()
            if key not in ("decoding", "data", "features")
        },
        **said,
    }
    folder = Path(config.output_dir)
    write_text(folder / "images.csv", comparison.csv_text(evaluations))
    text = json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False)
    write_text(folder / "scores.json", f"{text}\n")
    for table in tables:
        show(table)
    if references.frequencies and "cider_d" in evaluations[0].scores:
        log.info("CIDEr-D weighs n-grams by their frequencies in %s", references.frequencies.source)
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
