"""Score a model, a result file, or compare two: `python -m captioning.evaluate checkpoint=runs/… split=test`.

Writes `scores.json` and `images.csv` into the run folder; for a model also `captions.json` (COCO results
format) and `alternatives.json` where there are any; for `compare=[a.json,b.json]` also `comparison.html`. The
exit status is 2 where a metric that was asked for is not available; everything else is written all the same.
"""

from captioning.cli import as_list, command, quick_help

quick_help(__name__, "evaluate")  # before the imports that take seconds

import logging
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from captioning.evaluation import (
    Evaluation,
    GivenData,
    References,
    caption_split,
    check_options,
    compared_files,
    datamodule_of,
    print_table,
    read_references,
    read_systems,
    references_of,
    score,
    write_captions,
    write_page,
    write_report,
)
from captioning.evaluation.tables import Table
from captioning.predictor import load_members
from captioning.training.assembly import build_decoder, data_options, own_options, plain

log = logging.getLogger(__name__)


@command("evaluate")
def main(config: DictConfig) -> list[Evaluation]:
    options = own_options(config, groups=("decoding", "data", "features"))
    check_options(options)
    sides = compared_files(options["compare"]) if options["compare"] else (as_list(config.results),)
    files, checkpoints = [file for side in sides for file in side], as_list(config.checkpoint)
    data = GivenData(partial(data_options, config), instantiate) if "data" in config else None
    split, trust = config.split, as_list(config.trust)
    frequencies = {"source": config.document_frequencies, "save_to": config.save_document_frequencies}
    details: dict[str, Any] = {}
    if files or config.people:
        coco = (config.references, config.images or "") if config.references else None
        references = read_references(data, checkpoints, coco, split=split, trust=trust)
        if config.people:
            held_out, references = references.hold_one_out()
            systems = {"people": held_out}
        else:
            systems = read_systems(files, references, allow_empty=config.allow_empty)
        references = references.with_frequencies(**frequencies)
    else:
        overrides = plain(config.model_options) if config.model_options else None
        loaded = load_members(checkpoints, trust=trust, model_options=overrides)
        path = config.features_path
        datamodule = datamodule_of(loaded, data, split=split, features_path=path, trust=trust)
        references = references_of(datamodule, split).with_frequencies(**frequencies)
        torch.manual_seed(config.seed)
        batches = _progress(datamodule.image_dataloader(split, without_captions=True))
        decode = build_decoder(config.decoding, loaded.vocabulary)
        found = caption_split(loaded.model, loaded.vocabulary, batches, decode, autocast=config.autocast)
        write_captions(config.output_dir, found)
        systems = {str(config.checkpoint): {key: found.captions[key] for key in references.records}}
        milliseconds = round(found.milliseconds_per_image, 3)
        details = {"decoding": plain(config.decoding), "milliseconds_per_image": milliseconds}
    num_first = len(sides[0]) if options["compare"] and len(files) > 2 else None
    resampling: dict[str, Any] = {"seed": config.seed, "resamples": config.resamples}
    evaluations = _score(systems, references, as_list(config.metrics), **resampling)
    kept: dict[str, Any] = {"num_first": num_first, "options": options, "details": details}
    tables = write_report(config.output_dir, evaluations, references, **kept, **resampling)
    _show(tables, evaluations, references)
    if options["compare"] and config.page_images:
        page: dict[str, Any] = {"metric": config.page_metric, "limit": config.page_images}
        pair = [evaluations[0], evaluations[num_first or 1]]
        write_page(config.output_dir, pair, references, tables, several_runs=num_first is not None, **page)
    log.info("everything is in %s", config.output_dir)
    _exit_if_unavailable(evaluations)
    return evaluations


def _score(
    systems: Mapping[str, dict[str, str]], references: References, metrics: Sequence[str], **resampling: int
) -> list[Evaluation]:
    options: dict[str, Any] = {
        "metrics": metrics,
        "training": [text for texts in references.training for text in texts],
        "frequencies": references.frequencies,
        "tokens": references.tokens,
        **resampling,
    }
    return [score(texts, references.captions, name=name, **options) for name, texts in systems.items()]


def _show(tables: Sequence[Table], evaluations: Sequence[Evaluation], references: References) -> None:
    for table in tables:
        print_table(table)
    if not references.tokens.is_english:
        log.info("scores are over %s, and compare only with others over the same", references.tokens)
    if references.frequencies and "cider_d" in evaluations[0].scores:
        log.info("CIDEr-D weighs n-grams by their frequencies in %s", references.frequencies.source)


def _exit_if_unavailable(evaluations: list[Evaluation]) -> None:
    unavailable = {metric: why for one in evaluations for metric, why in one.unavailable.items()}
    for metric, why in unavailable.items():
        print(f"error: no {metric}: {why}", file=sys.stderr)
    if unavailable:
        raise SystemExit(2)


def _progress(batches: Any) -> Any:
    return track(batches, "captioning", console=Console(stderr=True), transient=True)


if __name__ == "__main__":
    main()
