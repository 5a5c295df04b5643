"""Rereads a whole feature cache and says of every row whether it is what was written."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from captioning.features.layout import UNREADABLE, WRITTEN, checksums, crc, decode, open_cache
from captioning.vocabulary import printable


class Findings(NamedTuple):
    """Image ids by the state of their rows; `corrupt` has the problem as well.

    Of a damaged record the id may be wrong; it is shown as it is.
    """

    good: list[str]
    to_do: list[str]
    unreadable: list[str]
    corrupt: list[tuple[str, str]]


def verify(path: str | Path) -> Findings:
    """Reread every row and check it for wrong checksums, NaN, Inf and rows of only zeros.

    Raises:
        InputError: there is no such file or it is not a feature cache.
    """
    findings = Findings([], [], [], [])
    with open_cache(Path(path)) as file:
        records = file["rows"][:]
        intact = checksums(records) == records["checksum"]
        for row, record in enumerate(records):
            if not intact[row]:
                name = printable(record["image_id"].decode(errors="replace"))
                findings.corrupt.append((name, "the record is damaged"))
                continue
            image_id = decode(record["image_id"])
            if record["status"] == WRITTEN:
                boxes, scores = (file[name][row] if name in file else None for name in ("boxes", "scores"))
                problem = _problem(file["features"][row], boxes, scores, record)
                if problem:
                    findings.corrupt.append((image_id, problem))
                else:
                    findings.good.append(image_id)
            elif image_id:  # a row without an image is unused
                (findings.unreadable if record["status"] == UNREADABLE else findings.to_do).append(image_id)
    return findings


def _problem(
    features: np.ndarray, boxes: np.ndarray | None, scores: np.ndarray | None, record: np.void
) -> str:
    if not np.isfinite(features).all():
        return "NaN or Inf"
    if crc(features) != record["features"] or crc(boxes, scores) != record["boxes"]:
        return "checksum differs"
    if not features.any():
        return "all zero"
    return ""
