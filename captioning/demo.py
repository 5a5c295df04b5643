"""The whole system in a few minutes: `python -m captioning.demo` (or `make demo`), no download.

Draws the toy scenes, extracts features, trains, then captions held-out scenes (drawn with a seed of their
own), lets the checker say which captions are true, and writes attention pictures.
"""

import logging
import time
from functools import partial
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from captioning.data.toy import Scene, is_true, named_shapes, read_scenes
from captioning.entry import build_decoder, command
from captioning.features import read_image
from captioning.predictor import Caption, Predictor
from captioning.train import train
from captioning.visualise import attention_figure, close, grid_margin, save

log = logging.getLogger(__name__)

PICTURES = 6


@command("demo")
def main(config: DictConfig) -> None:
    """Run the command."""
    started = time.perf_counter()
    train(config)
    # The last epoch, where the learning rate has come down; "best" goes by CIDEr-D, which is not truth.
    last = Path(config.output_dir) / "checkpoints" / "last.ckpt"
    predictor = Predictor.load(last, decoding=partial(build_decoder, config.decoding))
    records = [record for record in instantiate(config.data.reader)() if record.split == "test"]
    images = [read_image(record.path) for record in records]
    captions = [caption for i in range(0, len(images), 50) for caption in predictor.batch(images[i : i + 50])]
    scenes = read_scenes(Path(config.data.reader.root) / "captions_test.json")
    found = [(scenes[record.image_id], caption) for record, caption in zip(records, captions, strict=True)]
    folder = Path(config.output_dir) / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    for record, image, caption in list(zip(records, images, captions, strict=True))[:PICTURES]:
        if caption.attention is not None:
            margin = grid_margin(caption.image_size[0], caption.attention.shape[1])
            figure = attention_figure(
                image, caption.words, caption.attention, caption.boxes, caption.text, margin
            )
            save(figure, folder / f"{record.path.stem}.png")
            close(figure)
    report(found)
    log.info("attention pictures in %s; all of it took %.0f s", folder, time.perf_counter() - started)
    log.info(
        "caption a picture of yours: python -m captioning.caption checkpoint=%s image=...", config.output_dir
    )


def report(found: list[tuple[Scene, Caption]]) -> None:
    """Print sample captions with the checker's verdict, and the shares over all scenes."""
    table = Table("caption of a scene never seen", "shapes that are there", "true?")
    for scene, caption in found[:10]:
        shapes = ", ".join(shape.noun() for shape in scene.shapes)
        table.add_row(caption.text, shapes, "yes" if is_true(caption.text, scene) else "NO")
    Console().print(table)
    true = sum(is_true(caption.text, scene) for scene, caption in found)
    complete = sum(named_shapes(caption.text) == len(scene.shapes) for scene, caption in found)
    log.info("true captions: %d of %d held-out scenes (%.1f %%)", true, len(found), 100 * true / len(found))
    log.info("captions that name as many shapes as there are: %.1f %%", 100 * complete / len(found))


if __name__ == "__main__":
    main()
