"""Caption photographs: `python -m captioning.caption checkpoint=runs/… image=dog.jpg picture=dog.png`."""

import glob
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig, ListConfig

from captioning import results
from captioning.entry import build_decoder, command
from captioning.errors import InputError
from captioning.features import read_image
from captioning.features.images import IMAGE_SUFFIXES
from captioning.files import write_text
from captioning.predictor import Caption, Predictor, as_json
from captioning.visualise import PICTURE_FORMATS, attention_figure, close, grid_margin, save

log = logging.getLogger(__name__)


@command("caption")
def main(config: DictConfig) -> None:
    """Print a line a picture; exit status 1 if none could be read."""
    torch.manual_seed(config.seed)
    paths = find_images(config.image)
    pictures = picture_names(config.picture, paths) if config.picture else {}
    wanted = list(config.checkpoint) if isinstance(config.checkpoint, ListConfig) else config.checkpoint
    predictor = Predictor.load(
        wanted,
        decoding=partial(build_decoder, config.decoding),
        weights=config.weights,
        hard_context=config.hard_context,
    )
    lines = LineFile(config.output) if config.output else None
    failures = 0
    for path, caption in caption_all(predictor, paths):
        if caption is None:
            failures += 1
            continue
        print(f"{path}: {caption.text}", *(f"    {text}" for text, _ in caption.others), sep="\n", flush=True)
        if lines:
            lines.add(path, caption)
        if pictures:
            draw(path, caption, pictures[path])
    if lines:
        lines.finish()
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


def image_id_of(path: Path) -> str:
    """Give the number that a COCO file name ends in (COCO_test2014_000000000042.jpg is 42), or the name."""
    number = re.search(r"(?:^|_)(\d{12})$", path.stem)
    return str(int(number[1])) if number else path.stem


class LineFile:
    """A JSONL file that grows under a temporary name, so that a crash leaves what came before it.

    Args:
        path: the final name; with `.json` the file becomes one in COCO's results format at its end.

    Raises:
        InputError: it is a folder.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise InputError(
                f"output={path} is a folder; give the name of a file, such as {path}/captions.jsonl"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fresh = self.path.with_name(f"{self.path.name}.partial")
        self._file = self._fresh.open("w", encoding="utf-8")
        self._captions: dict[str, str] = {}

    def add(self, path: Path, caption: Caption) -> None:
        """Write a picture's line.

        Raises:
            InputError: COCO's format is asked for, and another picture has this one's id.
        """
        image_id = image_id_of(path)
        if self.path.suffix == ".json" and image_id in self._captions:
            raise InputError(
                f"two pictures have the id {image_id}, the second is {path}; give output=….jsonl"
            )
        self._captions[image_id] = caption.text
        self._file.write(json.dumps(as_json(str(path), caption), ensure_ascii=False) + "\n")
        self._file.flush()

    def finish(self) -> None:
        """Give the file its name."""
        self._file.close()
        if self.path.suffix == ".json":
            write_text(self.path, results.as_json(self._captions))
            self._fresh.unlink()
        else:
            os.replace(self._fresh, self.path)


def picture_names(wanted: str, paths: list[Path]) -> dict[Path, Path]:
    """Choose where the attention picture of each image goes: one file, or files of their own in a folder.

    Raises:
        InputError: one file for several images, or a name that is no picture's.
    """
    target = Path(wanted)
    if len(paths) == 1 and not (target.is_dir() or wanted.endswith("/")):
        if target.suffix.lower() not in PICTURE_FORMATS:
            raise InputError(
                f"picture={wanted} must end in one of {', '.join(PICTURE_FORMATS)}, or be a folder"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        return {paths[0]: target}
    if target.is_file() or target.suffix.lower() in PICTURE_FORMATS:
        raise InputError(f"picture={wanted} names one file for {len(paths)} images; give a folder")
    target.mkdir(parents=True, exist_ok=True)
    names: dict[Path, Path] = {}
    for path in dict.fromkeys(paths):
        choices = [
            path.stem,
            f"{path.parent.name}_{path.stem}",
            *(f"{path.stem}_{n}" for n in range(2, 10**6)),
        ]
        names[path] = next(p for p in (target / f"{c}.png" for c in choices) if p not in names.values())
    return names


if __name__ == "__main__":
    main()
