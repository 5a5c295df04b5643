"""What every metric takes and gives: aligned captions in, one number for the corpus and one per image out.

Scores are fractions, as the COCO caption toolkit gives them (CIDEr-D lies in [0, 10], the rest in [0, 1]);
papers print them times 100. This file scores nothing.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Tokens = Sequence[Hashable]
ImageId = TypeVar("ImageId", bound=Hashable)

_SHOWN = 3


class Score(NamedTuple):
    """One metric: the corpus value, and one value per image in the order of the candidates.

    `statistics` is what METEOR's program counts of each image; their sum tells the corpus value.
    """

    corpus: float
    per_image: list[float]
    statistics: list[list[float]] | None = None


class MetricUnavailable(RuntimeError):
    """A metric needs something this machine lacks; the message names it and the remedy."""


def check_aligned(
    candidates: Mapping[ImageId, object], references: Mapping[ImageId, Sequence[object]]
) -> None:
    """Refuse captions that cannot be scored.

    Raises:
        ValueError: No image at all; an image on one side only; an image without references; a caption that is
            not a string. The message names the first offenders and counts them.
    """
    if not candidates:
        raise ValueError("no candidates to score; give one caption per image")
    _refuse("no references for candidates of images", [key for key in candidates if key not in references])
    _refuse("no candidate for references of images", [key for key in references if key not in candidates])
    strings = [key for key, captions in references.items() if isinstance(captions, str)]
    _refuse("references must be a list of strings, but one string is given for images", strings)
    _refuse(
        "empty list of references for images", [key for key, captions in references.items() if not captions]
    )
    others = [key for key, caption in candidates.items() if not isinstance(caption, str)]
    _refuse("candidates must be strings, but other types are given for images", others)
    others = [key for key, captions in references.items() if not all(isinstance(c, str) for c in captions)]
    _refuse("references must be strings, but other types are given for images", others)


def check_paired(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> None:
    """Refuse token lists that do not pair up.

    Raises:
        ValueError: Nothing to score, lengths that differ, or an image without references.
    """
    if len(candidates) != len(references):
        raise ValueError(
            f"{len(candidates)} candidates but references for {len(references)} images; "
            "give one candidate per image"
        )
    if not candidates:
        raise ValueError("no candidates to score; give one caption per image")
    _refuse(
        "empty list of references for images", [i for i, captions in enumerate(references) if not captions]
    )


def _refuse(complaint: str, offenders: Sequence[object]) -> None:
    if offenders:
        shown = ", ".join(repr(offender) for offender in offenders[:_SHOWN])
        more = ", …" if len(offenders) > _SHOWN else ""
        raise ValueError(f"{complaint} {shown}{more} ({len(offenders)} in all)")
