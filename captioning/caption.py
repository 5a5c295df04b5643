"""Caption photographs: `python -m captioning.caption checkpoint=runs/… image=dog.jpg picture=dog.png`."""

import logging
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from captioning.cli import command
from captioning.errors import InputError
from captioning.evaluation import CaptionFile, attention_figure, close, picture_paths, save
from captioning.features import find_images, read_image
from captioning.predictor import Caption, load

log = logging.getLogger(__name__)


@command("caption")
def main(config: DictConfig) -> None:
    """Print a line for each picture; exit status 1 if none could be read."""
    options: Any = OmegaConf.to_container(config, resolve=True)
    torch.manual_seed(options["seed"])
    paths = find_images(options["image"])
    pictures = picture_paths(options["picture"], paths) if options["picture"] else {}
    captioner = load(
        options["checkpoint"],
        decoding=options["decoding"],
        weights=options["weights"],
        trust=options["trust"],
        model_options=options["model_options"],
    )
    output = CaptionFile(options["output"]) if options["output"] else None
    failures = 0
    for path in paths:
        try:
            image = read_image(path)
        except InputError as error:
            print(f"skipped {error}", file=sys.stderr)
            failures += 1
            continue
        caption = captioner(image)
        texts = [caption.text, *(text for text, _ in caption.alternatives)]
        print(f"{path}: {texts[0]}", *(f"    {text}" for text in texts[1:]), sep="\n", flush=True)
        if output:
            output.add(path, caption.text, caption.log_prob, caption.alternatives)
        if pictures:
            save_picture(path, caption, pictures[path])
    if output:
        output.finish()
    if failures:
        print(f"{failures} of {len(paths)} pictures could not be read", file=sys.stderr)
        raise SystemExit(1 if failures == len(paths) else 0)


def save_picture(path: Path, caption: Caption, target: Path) -> None:
    """Write the attention picture of one photograph."""
    if caption.attention is None:
        log.warning("%s: this model has no attention over regions to draw", path)
        return
    figure = attention_figure(
        read_image(path),
        caption.words,
        caption.attention,
        boxes=caption.boxes,
        grid=caption.grid,
        image_size=caption.image_size,
        title=caption.text,
    )
    save(figure, target)
    close(figure)


if __name__ == "__main__":
    main()
