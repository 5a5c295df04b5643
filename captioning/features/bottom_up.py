"""The published bottom-up features (Anderson et al. 2018): tab-separated files, one image per line.

Columns: image_id, image_w, image_h, num_boxes, boxes, features. The last two are base64 of float32:
num_boxes × 4 corners in pixels, num_boxes × 2048. Either 10 to 100 boxes per image or always 36; no scores.
The authors' links are dead: people bring their own copies, which may be truncated or contain an image twice.
"""

import base64
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captioning.errors import InputError
from captioning.features.cache import Row
from captioning.features.orders import order_named

COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


class BottomUpFiles:
    """Published files as a source of rows for `extract`.

    The files hold features and no network: a model trained on them captions only images that they contain.

    Args:
        files: the TSV files; of an image in several lines, the first line counts.
        num_regions: R, to which every image is padded: 36, or 100 for the files with 10 to 100 boxes.
        feature_dim: D.
        order: `stored`, as in the files, or `area`, `left_to_right`, `random`; they have no scores.

    Raises:
        InputError: another order.
    """

    has_boxes = True
    grid: tuple[int, int] | None = None

    def __init__(
        self, *, files: Sequence[str], num_regions: int, feature_dim: int, order: str = "stored"
    ) -> None:
        if order == "confidence":
            raise InputError(
                "the published files have no scores; set features.extractor.order=stored to keep their order"
            )
        self._order = None if order == "stored" else order_named(order)
        self.files = [Path(name) for name in ([files] if isinstance(files, str) else files)]
        self.num_regions, self.feature_dim = num_regions, feature_dim
        self.missing_weights: list[str] = []
        self.provenance = self.expected_provenance(
            num_regions=num_regions, feature_dim=feature_dim, order=order
        )

    @classmethod
    def expected_provenance(cls, **options: Any) -> dict[str, Any]:
        """Return what a cache made with these constructor options must record."""
        # The files' names are left out: somebody who adds a file completes the same cache.
        return {
            "architecture": "bottom_up",
            **{key: value for key, value in options.items() if key != "files"},
        }

    def read_rows(self, wanted: Container[str]) -> Iterator[tuple[str, Row]]:
        """Read the rows of the wanted images, padded to R, as float32.

        Args:
            wanted: image ids without file suffix; it may change between two rows.

        Yields:
            id without file suffix and row, in the order of the files.

        Raises:
            InputError: no files, damaged ones, or rows that do not fit (R, D).
        """
        if not self.files:
            raise InputError(
                "features=bottom_up reads published TSV files; set features.extractor.files=[a.tsv,b.tsv]"
            )
        for path in self.files:
            for image_id, row in read_bottom_up_tsv(path, wanted):
                num_regions, feature_dim = row.features.shape
                if num_regions > self.num_regions or feature_dim != self.feature_dim:
                    raise InputError(
                        f"{path}: image {image_id} has {num_regions} × {feature_dim} features but "
                        f"features.extractor expects at most {self.num_regions} × {self.feature_dim}; set "
                        "features.extractor.num_regions=100 for the files with 10 to 100 boxes"
                    )
                yield image_id, self._pad(self._ordered(row))

    def _ordered(self, row: Row) -> Row:
        if self._order is None:
            return row
        assert row.boxes is not None and row.scores is not None
        order = self._order(torch.from_numpy(row.boxes), torch.from_numpy(row.scores)).numpy()
        return Row(row.features[order], row.num_regions, row.boxes[order], row.scores[order])

    def _pad(self, row: Row) -> Row:
        missing = self.num_regions - row.num_regions
        assert row.boxes is not None and row.scores is not None
        return Row(
            np.pad(row.features, ((0, missing), (0, 0))),
            row.num_regions,
            np.pad(row.boxes, ((0, missing), (0, 0))),
            np.pad(row.scores, (0, missing)),
        )

    def to(self, device: torch.device) -> Self:
        """Do nothing: there is no network to move."""
        return self

    def transform(self, image: Image.Image) -> Tensor:
        """Refuse a new image.

        Raises:
            InputError: always.
        """
        raise InputError(
            "features=bottom_up come from published files, so there is no network that could process a new "
            "image; train with features=faster_rcnn or a grid to caption images of your own"
        )


def read_bottom_up_tsv(path: str | Path, wanted: Container[str] | None = None) -> Iterator[tuple[str, Row]]:
    """Read a published file line by line.

    Args:
        path: the TSV file.
        wanted: ids, without file suffix, of the images to read; others are skipped without decoding them.

    Yields:
        id without file suffix, and a row: features (num_boxes, D) float32, boxes as fractions of the image,
        scores 0.

    Raises:
        InputError: there is no such file, or a line is damaged; its number is given.
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
                    "another copy and run the same command again to continue"
                ) from error
            yield image_id, row


def _parse(fields: Sequence[bytes]) -> Row:
    width, height, num_boxes = (int(field) for field in fields[1:4])
    if min(width, height, num_boxes) < 1:
        raise ValueError(f"{num_boxes} boxes in an image of {width} × {height} pixels")
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
