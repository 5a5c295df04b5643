"""The whole system in a few minutes: `python -m captioning.demo` (or `make demo`), with no download.

Captions the photographs that come with the package, then draws the toy scenes, extracts features, trains,
captions held-out scenes (drawn with a seed of their own), lets the checker decide which captions are true,
and writes attention pictures.
"""

from captioning.cli import command, quick_help

quick_help(__name__, "demo")  # before the imports that take seconds

import logging
import time
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from captioning import checkpoint, portable
from captioning.cli.progress import extraction_progress
from captioning.data.toy import Scene, is_true, named_shapes, read_scenes
from captioning.evaluation import close, save
from captioning.files import PHOTOGRAPHS
from captioning.predictor import Caption, load
from captioning.training import assemble
from captioning.training.assembly import plain

log = logging.getLogger(__name__)

NUM_PICTURES = 6


@command("demo")
def main(config: DictConfig) -> None:
    """Train on the toy scenes, then caption and check held-out ones."""
    started = time.perf_counter()
    folder = Path(config.output_dir)
    caption_photographs(folder / "pictures")
    assemble(config, progress=extraction_progress).fit()
    # The last epoch, where the learning rate has come down; "best" goes by CIDEr-D, which is not truth.
    captioner = load(folder / "checkpoints" / checkpoint.LAST, decoding=plain(config.decoding))
    records = [record for record in instantiate(config.data.reader)() if record.split == "test"]
    captions = captioner([record.path for record in records], batch_size=50)
    scenes = read_scenes(Path(config.data.reader.root) / "captions_test.json")
    report([(scenes[record.image_id], caption) for record, caption in zip(records, captions, strict=True)])
    for record, caption in zip(records[:NUM_PICTURES], captions, strict=False):
        save_picture(caption, folder / "pictures" / f"{record.path.stem}.png")
    log.info("attention pictures in %s", folder / "pictures")
    log.info("all of it took %.0f s", time.perf_counter() - started)
    log.info("caption your own picture: python -m captioning.caption checkpoint=%s image=...", folder)


def caption_photographs(folder: Path) -> None:
    """Caption the photographs that come with the package, where a captioner comes with it too."""
    if not portable.BUNDLED.is_file():
        log.info("no captioner comes with this installation; the photographs are left out")
        return
    captioner = load()
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        caption = captioner(path)
        log.info("%s: %s", path.name, caption.text)
        save_picture(caption, folder / f"{path.stem}.png")


def save_picture(caption: Caption, target: Path) -> None:
    """Write the attention picture of one caption."""
    figure = caption.show()
    save(figure, target)
    close(figure)


def report(results: list[tuple[Scene, Caption]]) -> None:
    """Print sample captions with the checker's verdict, and the shares over all scenes."""
    table = Table("caption of a held-out scene", "shapes in it", "true?")
    for scene, caption in results[:10]:
        shapes = ", ".join(shape.noun() for shape in scene.shapes)
        table.add_row(caption.text, shapes, "yes" if is_true(caption.text, scene) else "NO")
    Console().print(table)
    true = sum(is_true(caption.text, scene) for scene, caption in results)
    complete = sum(named_shapes(caption.text) == len(scene.shapes) for scene, caption in results)
    total = len(results)
    log.info("true captions: %d of %d held-out scenes (%.1f %%)", true, total, 100 * true / total)
    log.info("captions that name as many shapes as there are: %.1f %%", 100 * complete / total)


if __name__ == "__main__":
    main()
