"""Train a captioner: `python -m captioning.train experiment=coco30k`; without arguments, the toy one."""

import json
import logging
import sys
from pathlib import Path

import torch
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig

from captioning import checkpoint
from captioning.assembly import build_data, build_module, starting_point, take_up
from captioning.data import CaptionDataModule
from captioning.entry import command
from captioning.features import FeatureCache, extract
from captioning.features.weights import is_file_name
from captioning.files import write_text
from captioning.module import CaptioningModule
from captioning.objectives import SelfCritical
from captioning.progress import track
from captioning.training import SafeCheckpointIO, TraceShapes

log = logging.getLogger(__name__)


def train(config: DictConfig) -> float | None:
    """Run a training and return the monitored value of its best epoch, for sweeps."""
    seed_everything(config.seed, workers=True, verbose=False)
    torch.set_float32_matmul_precision("high")
    start = starting_point(config)
    if is_file_name(weights := str((config.features.get("extractor") or {}).get("weights", ""))):
        config.features.extractor.weights = str(Path(weights).absolute())  # checkpoints are used anywhere
    if config.prepare:
        prepare(config)
    datamodule = build_data(config, words=start["captioning"]["words"] if start else None)
    module = build_module(config, datamodule)
    if start:  # also to resume, where Lightning would take up the weights by itself but not say what is wrong
        take_up(module, start, datamodule, config.resume or config.start_from)
    elif isinstance(module.objective, SelfCritical):
        log.warning(
            "self-critical training from random weights learns next to nothing; give start_from=<run>"
        )
    if not start and config.expect_frequencies:
        module.model.expect_frequencies(datamodule.captions("train").word_counts())
    trainer = instantiate(
        config.trainer,
        logger=list(instantiate(config.logger).values()),
        callbacks=[*instantiate(config.trainer.callbacks), *([TraceShapes()] if config.trace_shapes else [])],
        plugins=[SafeCheckpointIO()],
    )
    count = sum(parameter.numel() for parameter in module.parameters())
    log.info(
        "%s: %s parameters, %d words, run folder %s",
        config.name,
        f"{count:,}",
        len(module.vocabulary),
        config.output_dir,
    )
    fit(trainer, module, datamodule, config)
    if trainer.is_global_zero:
        summarise(config, module, count)
    best = trainer.checkpoint_callback
    if best is None or best.best_model_score is None:
        return None
    log.info("best %s %.3f: %s", best.monitor, best.best_model_score, best.best_model_path)
    return float(best.best_model_score)


def fit(
    trainer: Trainer, module: CaptioningModule, datamodule: CaptionDataModule, config: DictConfig
) -> None:
    """Train, from a run's last epoch on if there is one to resume; Ctrl-C ends with the way to go on."""
    last = checkpoint.locate(config.resume) if config.resume else None
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=last, weights_only=True)
    except SystemExit:  # how Lightning ends after Ctrl-C
        if trainer.interrupted:
            print(f"stopped; the last whole epoch goes on with resume={config.output_dir}", file=sys.stderr)
            raise SystemExit(130) from None
        raise


def summarise(config: DictConfig, module: CaptioningModule, parameters: int) -> None:
    """Write `summary.json` into the run folder: every epoch's validation, and the one of the best CIDEr-D."""
    scored = [epoch for epoch in module.history if "cider_d" in epoch]
    best = max(scored, key=lambda epoch: epoch["cider_d"], default=None)
    said = {"name": config.name, "parameters": parameters, "best": best, "epochs": module.history}
    write_text(Path(config.output_dir) / "summary.json", json.dumps(said, indent=1) + "\n")


def prepare(config: DictConfig) -> None:
    """Extract features that are not there yet, so that one command leads from photographs to a model."""
    images = {record.image_id: record.path for record in instantiate(config.data.reader)()}
    path = Path(config.features.path)
    if path.exists():
        cache = FeatureCache(path)
        if images.keys() <= {*cache.image_ids, *cache.unreadable}:
            return
    extractor = instantiate(config.features.extractor)
    report = extract(extractor, images, path, progress=track, **config.features.run)
    log.info("extracted %d images in %.0f s to %s", report.done_now, report.seconds, path)
    for image_id, problem in report.unreadable:
        log.warning("left out, as it can't be read: %s: %s", image_id, problem)


@command("train")
def main(config: DictConfig) -> float | None:
    """Run the command."""
    return train(config)


if __name__ == "__main__":
    main()
