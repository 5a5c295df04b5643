"""The result of a metric, for the corpus and for each image, and the checks of what is scored.

Scores are fractions, as the COCO caption toolkit gives them (CIDEr-D lies in [0, 10], the rest in [0, 1]);
papers print them times 100.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

Tokens = Sequence[Hashable]
ImageId = TypeVar("ImageId", bound=Hashable)

_NUM_SHOWN = 3  # offenders that a message names


class Score(NamedTuple):
    """One metric's values.

    corpus: of all images.
    per_image: in the order of the candidates.
    statistics: METEOR's counts for each image (23 numbers), from whose sums the corpus value follows.
    """

    corpus: float
    per_image: list[float]
    statistics: list[list[float]] | None = None


class MetricUnavailable(RuntimeError):
    """A metric needs something that this machine lacks; the message names it and the remedy."""


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
        shown = ", ".join(repr(offender) for offender in offenders[:_NUM_SHOWN])
        more = ", …" if len(offenders) > _NUM_SHOWN else ""
        raise ValueError(f"{complaint} {shown}{more} ({len(offenders)} in all)")
