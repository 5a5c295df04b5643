"""Caption a split without a caption model: `python -m captioning.baseline experiment=flickr8k`.

Writes `captions.json`, a result file that `captioning.evaluate results=…` scores like any other.
"""

from captioning.cli import command, quick_help

quick_help(__name__, "baseline")  # before the imports that take seconds

import logging
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from captioning.evaluation.baselines import global_features
from captioning.evaluation.results import results_json
from captioning.files import write_text
from captioning.training.assembly import build_data

log = logging.getLogger(__name__)


@command("baseline")
def main(config: DictConfig) -> None:
    data = build_data(config, splits=("train", config.split))
    training_features, features = (
        global_features(data.image_dataloader(split, without_captions=True))
        for split in ("train", config.split)
    )
    retrieve = instantiate(config.retrieval)
    captions = retrieve(data.split("train"), training_features, features, tokenizer=data.tokenizer)
    image_ids = [record.image_id for record in data.split(config.split)]
    path = Path(config.output_dir) / "captions.json"
    write_text(path, results_json(dict(zip(image_ids, captions, strict=True))))
    log.info(
        "%d captions are in %s; score them with python -m captioning.evaluate results=…", len(captions), path
    )


if __name__ == "__main__":
    main()
