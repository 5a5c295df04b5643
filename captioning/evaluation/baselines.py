"""Captions without a caption model: the baselines that keep everybody honest.

Functions (training records, their features, features of the pictures to caption, *, …) -> captions. They take
captions of training images only.
"""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from captioning.data.annotations import Annotated
from captioning.errors import InputError
from captioning.metrics import CiderD, DocumentFrequencies
from captioning.vocabulary import tokenize

BLOCK = 256  # pictures whose similarities are held at once


def most_frequent(training: Sequence[Annotated], known: np.ndarray, wanted: np.ndarray) -> list[str]:
    """Say of every picture what is said most often, ties by the alphabet.

    Args:
        training: pictures with their captions.
        known: (training pictures, D), not looked at.
        wanted: (pictures, D), not looked at.
    """
    counts = Counter(" ".join(tokenize(text)) for record in training for text in record.captions)
    return [min(counts, key=lambda text: (-counts[text], text))] * len(wanted)


def nearest_neighbour(
    training: Sequence[Annotated], known: np.ndarray, wanted: np.ndarray, *, neighbours: int
) -> list[str]:
    """Say what was said of the nearest training pictures, by the cosine of global features.

    Of their captions the one that the others agree with most is taken, by mean CIDEr-D (Devlin et al. 2015,
    "Exploring nearest neighbor approaches for image captioning").

    Args:
        training: pictures with their captions.
        known: (training pictures, D) their global features.
        wanted: (pictures, D).
        neighbours: training pictures whose captions are candidates.

    Raises:
        InputError: no neighbour, or more than there are training pictures.
    """
    if not 1 <= neighbours <= len(training):
        raise InputError(
            f"retrieval.neighbours is {neighbours}; it must be 1 to {len(training)}, the number of "
            "training images"
        )
    known, captions = _unit(known), []
    for start in range(0, len(wanted), BLOCK):
        similarity = _unit(wanted[start : start + BLOCK]) @ known.T  # (pictures, training pictures)
        for row in similarity:
            nearest = np.argsort(-row, kind="stable")[:neighbours]
            captions.append(_agreed([text for place in nearest for text in training[place].captions]))
    return captions


def _agreed(captions: Sequence[str]) -> str:
    """Return the caption that the others agree with most, all n-grams weighing the same."""
    words = [tokenize(text) for text in captions]
    others: dict[Hashable, list[list[str]]] = {
        own: words[:own] + words[own + 1 :] or [words[own]] for own in range(len(words))
    }
    equal_weights = DocumentFrequencies.of([[[]], [[]]], source="all n-grams weigh the same")
    scores = CiderD(others, equal_weights).scores(list(enumerate(words)))
    return " ".join(words[int(np.argmax(scores))])


def _unit(features: np.ndarray) -> np.ndarray:
    return features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
