"""Caption photographs: `python -m captioning.caption checkpoint=runs/… image=dog.jpg picture=dog.png`."""

import glob
import json
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from captioning.entry import build_decoder, command
from captioning.errors import InputError
from captioning.features import read_image
from captioning.features.images import IMAGE_SUFFIXES
from captioning.predictor import Caption, Predictor, as_json
from captioning.visualise import attention_figure, close, grid_margin, save

log = logging.getLogger(__name__)


@command("caption")
def main(config: DictConfig) -> None:
    """Print a line a picture; exit status 1 if none could be read."""
    paths = find_images(config.image)
    wanted = list(config.checkpoint) if isinstance(config.checkpoint, ListConfig) else config.checkpoint
    predictor = Predictor.load(
        wanted,
        decoding=partial(build_decoder, config.decoding),
        weights=config.weights,
        hard_context=config.hard_context,
    )
    target = Path(config.picture) if config.picture else None
    if target and len(paths) > 1:
        target.mkdir(parents=True, exist_ok=True)
    lines, failures = [], 0
    for path, caption in caption_all(predictor, paths):
        if caption is None:
            failures += 1
            continue
        print(f"{path}: {caption.text}", flush=True)
        lines.append(json.dumps(as_json(str(path), caption), ensure_ascii=False))
        if target:
            draw(path, caption, target / f"{path.stem}.png" if target.is_dir() else target)
    if config.output:
        write_lines(Path(config.output), lines)
    if failures:
        print(f"{failures} of {len(paths)} pictures could not be read", file=sys.stderr)
        raise SystemExit(1 if failures == len(paths) else 0)


def caption_all(predictor: Predictor, paths: list[Path]) -> Iterator[tuple[Path, Caption | None]]:
    """Caption each picture; one that can't be read is reported and comes out as None."""
    for path in paths:
        try:
            image = read_image(path)
        except InputError as error:
            print(f"skipped {error}", file=sys.stderr)
            yield path, None
            continue
        yield path, predictor(image)


def find_images(wanted: str | ListConfig) -> list[Path]:
    """Resolve a file, folder, pattern, or list of them.

    Raises:
        InputError: nothing matches.
    """
    found: list[Path] = []
    for name in wanted if isinstance(wanted, ListConfig) else [wanted]:
        path = Path(str(name)).expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise InputError(f"the folder {path} holds no picture ({', '.join(IMAGE_SUFFIXES)})")
            found += inside
        elif path.exists() or not glob.has_magic(str(path)):
            found.append(path)
        else:
            matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
            if not matches:
                raise InputError(f"no file matches {path}")
            found += matches
    return found


def draw(path: Path, caption: Caption, target: Path) -> None:
    """Write the attention picture."""
    if caption.attention is None:
        log.warning("%s: this model has no attention over regions to draw", path)
        return
    margin = grid_margin(caption.image_size[0], caption.attention.shape[1])
    image = read_image(path)
    figure = attention_figure(image, caption.words, caption.attention, caption.boxes, caption.text, margin)
    save(figure, target)
    close(figure)


def write_lines(path: Path, lines: list[str]) -> None:
    """Write a JSONL file under a temporary name and rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.partial")
    fresh.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(fresh, path)


if __name__ == "__main__":
    main()
