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
        raise InputError(f"neighbours is {neighbours}; it must be 1 to {len(training)}, the training images")
    similarity = _unit(wanted) @ _unit(known).T  # (pictures, training pictures)
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
    return [_agreed([text for row in rows for text in training[row].captions]) for rows in nearest]


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
