"""Caption a split without a caption model: `python -m captioning.baseline experiment=flickr8k`.

Writes `captions.json`, a result file that `captioning.evaluate results=…` scores like any other.
"""

import logging
from pathlib import Path

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from captioning import results
from captioning.assembly import build_data
from captioning.data import CaptionDataModule
from captioning.entry import command
from captioning.files import write_text

log = logging.getLogger(__name__)


def global_features(datamodule: CaptionDataModule, split: str) -> np.ndarray:
    """Mean of each image's real regions: (images, D) float32, in the records' order."""
    means = []
    for batch in datamodule.image_dataloader(split, sealed=True):
        features = batch.features.float()
        real = features.new_ones(features.shape[:2]) if batch.mask is None else batch.mask.float()
        means.append((features * real[..., None]).sum(1) / real.sum(1, keepdim=True))
    return np.concatenate([mean.numpy() for mean in means])


@command("baseline")
def main(config: DictConfig) -> None:
    """Run the command."""
    datamodule = build_data(config, splits=("train", config.split))
    known, wanted = (global_features(datamodule, split) for split in ("train", config.split))
    captions = instantiate(config.retrieval)(datamodule.split("train"), known, wanted)
    image_ids = [record.image_id for record in datamodule.split(config.split)]
    path = Path(config.output_dir) / "captions.json"
    write_text(path, results.as_json(dict(zip(image_ids, captions, strict=True))))
    log.info(
        "%d captions are in %s; score them with python -m captioning.evaluate results=…", len(captions), path
    )


if __name__ == "__main__":
    main()
