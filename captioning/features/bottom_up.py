"""The published bottom-up features (Anderson et al. 2018): tab-separated files, one image a line.

Columns: image_id, image_w, image_h, num_boxes, boxes, features. The last two are base64 of float32:
num_boxes × 4 corners in pixels, num_boxes × 2048. Either 10 to 100 boxes an image or always 36; no scores.
The authors' links are dead: people bring their own copies, which may be cut short or hold an image twice.
"""

import base64
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioning.errors import InputError
from captioning.features.cache import Row
from captioning.features.orders import order_of

COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


class BottomUpFiles:
    """Published files as a source of rows for `extract`.

    The files hold features and no network: a model trained on them captions only images that they have.

    Args:
        files: the TSV files; of an image that is in several lines, the first counts.
        regions: R, what every image is padded to: 36, or 100 for the files with 10 to 100 boxes.
        dim: D.
        order: `stored`, as the files have them, or `area`, `left_to_right`, `random`; they have no scores.

    Raises:
        InputError: another order.
    """

    has_boxes = True

    def __init__(self, *, files: Sequence[str], regions: int, dim: int, order: str = "stored") -> None:
        if order == "confidence":
            raise InputError(
                "the published files have no scores; features.extractor.order=stored keeps theirs"
            )
        self._order = None if order == "stored" else order_of(order)
        self.files = [Path(name) for name in ([files] if isinstance(files, str) else files)]
        self.regions, self.dim = regions, dim
        self.missing_weights: list[str] = []
        # Not the files' names: who adds a file completes the cache.
        self.provenance = {"architecture": "bottom_up", "regions": regions, "dim": dim, "order": order}

    def shape(self) -> tuple[int, int]:
        """Tell (R, D)."""
        return self.regions, self.dim

    def read_rows(self, wanted: Container[str]) -> Iterator[tuple[str, Row]]:
        """Read the rows of wanted images, padded to R, as float32.

        Raises:
            InputError: no files, damaged ones, or rows that don't fit (R, D).
        """
        if not self.files:
            raise InputError(
                "features=bottom_up reads published TSV files; set features.extractor.files=[a.tsv,b.tsv]"
            )
        for path in self.files:
            for image_id, row in read_bottom_up_tsv(path, wanted):
                num_regions, dim = row.features.shape
                if num_regions > self.regions or dim != self.dim:
                    raise InputError(
                        f"{path}: image {image_id} has {num_regions} × {dim} features but features.regions "
                        f"is {self.regions} and features.dim {self.dim}; set features.regions=100 for the "
                        "files with 10 to 100 boxes"
                    )
                yield image_id, self._pad(self._ordered(row))

    def _ordered(self, row: Row) -> Row:
        if self._order is None:
            return row
        assert row.boxes is not None and row.scores is not None
        places = self._order(torch.from_numpy(row.boxes), torch.from_numpy(row.scores)).numpy()
        return Row(row.features[places], row.num_regions, row.boxes[places], row.scores[places])

    def _pad(self, row: Row) -> Row:
        beyond = self.regions - row.num_regions
        assert row.boxes is not None and row.scores is not None
        return Row(
            np.pad(row.features, ((0, beyond), (0, 0))),
            row.num_regions,
            np.pad(row.boxes, ((0, beyond), (0, 0))),
            np.pad(row.scores, (0, beyond)),
        )

    def to(self, device: torch.device) -> "BottomUpFiles":
        """Stay: there is nothing to move."""
        return self

    def transform(self, image: Image.Image) -> Tensor:
        """Refuse a new picture.

        Raises:
            InputError: always.
        """
        raise InputError(
            "features=bottom_up come from published files, not from a network that could look at a new "
            "picture; train with features=faster_rcnn or a grid to caption pictures of your own"
        )


def read_bottom_up_tsv(path: str | Path, wanted: Container[str] | None = None) -> Iterator[tuple[str, Row]]:
    """Read a published file line by line.

    Args:
        path: of the TSV file.
        wanted: ids, without file suffix, of the images to read; others are passed over undecoded.

    Yields:
        id without file suffix, and a row: features (num_boxes, D) float32, boxes as fractions of the image,
        scores 0.

    Raises:
        InputError: no such file, or a damaged line, by its number.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; set features.extractor.files to your copies")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                fields = line.rstrip(b"\r\n").split(b"\t")
                if len(fields) != len(COLUMNS):
                    raise ValueError(f"{len(fields)} columns, not the {len(COLUMNS)}: {', '.join(COLUMNS)}")
                image_id = Path(fields[0].decode()).stem
                if wanted is not None and image_id not in wanted:
                    continue
                row = _parse(fields)
            except ValueError as error:  # base64 and number errors are ValueErrors too
                raise InputError(
                    f"{path} line {number}: {error}; the file is damaged or no bottom-up TSV file; get "
                    "another copy and run the same command again to go on"
                ) from error
            yield image_id, row


def _parse(fields: Sequence[bytes]) -> Row:
    width, height, num_boxes = (int(field) for field in fields[1:4])
    if min(width, height, num_boxes) < 1:
        raise ValueError(f"{num_boxes} boxes in a picture of {width} × {height} pixels")
    boxes, features = (
        np.frombuffer(base64.b64decode(field, validate=True), dtype="<f4") for field in fields[4:]
    )
    if boxes.size != num_boxes * 4:
        raise ValueError(f"the boxes are {boxes.size} numbers, not {num_boxes} × 4")
    if features.size == 0 or features.size % num_boxes:
        raise ValueError(
            f"the features are {features.size} numbers, which is no multiple of {num_boxes} boxes"
        )
    corners = boxes.reshape(num_boxes, 4) / np.array([width, height, width, height], dtype=np.float32)
    scores = np.zeros(num_boxes, dtype=np.float32)
    return Row(features.reshape(num_boxes, -1), num_boxes, corners.clip(0, 1), scores)
