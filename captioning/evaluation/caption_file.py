"""Captions of photographs as a file: JSON lines, or COCO's results format as its server takes it."""

import json
import os
import re
from pathlib import Path
from typing import Any

from captioning.errors import InputError
from captioning.evaluation.results import results_json
from captioning.files import partial_path, write_text


class CaptionFile:
    """A file of captions that grows under a temporary name, so that a crash leaves what came before it.

    Args:
        path: the final name; with the suffix `.json` the file is in COCO's results format.

    Raises:
        InputError: it is a folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise InputError(
                f"output={path} is a folder; give the name of a file, such as {path}/captions.jsonl"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = partial_path(self.path)
        self._file = self._partial.open("w", encoding="utf-8")
        self._captions: dict[str, str] = {}

    def add(
        self, path: Path, text: str, log_prob: float, alternatives: tuple[tuple[str, float], ...] = ()
    ) -> None:
        """Write one picture's line.

        Raises:
            InputError: COCO's format is asked for, and another picture has this one's id.
        """
        image_id = image_id_of(path)
        if self.path.suffix == ".json" and image_id in self._captions:
            raise InputError(
                f"two pictures have the id {image_id}, the second is {path}; give output=….jsonl"
            )
        self._captions[image_id] = text
        entry: dict[str, Any] = {"image": str(path), "caption": text, "log_prob": round(log_prob, 4)}
        if alternatives:
            entry["alternatives"] = [
                {"caption": other, "log_prob": round(value, 4)} for other, value in alternatives
            ]
        self._file.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._file.flush()

    def finish(self) -> None:
        """Give the file its name."""
        self._file.close()
        if self.path.suffix == ".json":
            write_text(self.path, results_json(self._captions))
            self._partial.unlink()
        else:
            os.replace(self._partial, self.path)


def image_id_of(path: Path) -> str:
    """Return the number that a COCO file name ends in (COCO_test2014_000000000042.jpg is 42), or the name."""
    number = re.search(r"(?:^|_)(\d{12})$", path.stem)
    return str(int(number[1])) if number else path.stem
