"""Captions without a caption model: what any model has to beat.

Baselines are functions (training records, their features, features of the images to caption, *, tokenizer,
…) -> captions, configured by `conf/retrieval`. They return captions of training images only.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from captioning.data.dataset import Batch
from captioning.data.records import Annotated
from captioning.errors import InputError
from captioning.metrics import DocumentFrequencies, score_agreement
from captioning.models.encoder import masked_mean
from captioning.tokenizers import Tokenizer

_BLOCK = 256  # images whose similarities are in memory at once


def global_features(batches: Iterable[Batch]) -> np.ndarray:
    """Mean of each image's real regions: (images, D) float32, in the order of the batches."""
    means = [masked_mean(batch.features.float(), batch.mask) for batch in batches]
    return np.concatenate([mean.numpy() for mean in means])


def most_frequent(
    training: Sequence[Annotated],
    training_features: np.ndarray,
    features: np.ndarray,
    *,
    tokenizer: Tokenizer,
) -> list[str]:
    """Give every image the most frequent training caption; ties go by the alphabet.

    Args:
        training: images with their captions.
        training_features: (training images, D), not used.
        features: (images, D), only counted.
        tokenizer: of the captions.
    """
    counts = Counter(tokenizer.join(tokenizer(text)) for record in training for text in record.captions)
    return [min(counts, key=lambda text: (-counts[text], text))] * len(features)


def nearest_neighbour(
    training: Sequence[Annotated],
    training_features: np.ndarray,
    features: np.ndarray,
    *,
    tokenizer: Tokenizer,
    neighbours: int,
) -> list[str]:
    """Give every image a caption of its nearest training images, by cosine similarity of global features.

    Of the neighbours' captions it is the one with the highest mean CIDEr-D against the others, with document
    frequencies of the training captions (Devlin et al. 2015, "Exploring nearest neighbor approaches for image
    captioning").

    Args:
        training: images with their captions.
        training_features: (training images, D).
        features: (images, D).
        tokenizer: of the captions, whose CIDEr-D counts its tokens.
        neighbours: training images whose captions are candidates.

    Raises:
        InputError: no neighbour, or more than there are training images.
    """
    if not 1 <= neighbours <= len(training):
        raise InputError(
            f"retrieval.neighbours is {neighbours}; it must be 1 to {len(training)}, the number of "
            "training images"
        )
    known, captions = _normalise(training_features), []
    documents = [[tokenizer(text) for text in record.captions] for record in training]
    frequencies = DocumentFrequencies.of(documents, source="training captions")
    for start in range(0, len(features), _BLOCK):
        similarity = _normalise(features[start : start + _BLOCK]) @ known.T  # (block, training images)
        for row in similarity:
            nearest = np.argsort(-row, kind="stable")[:neighbours]
            candidates = [words for place in nearest for words in documents[place]]
            best = int(np.argmax(score_agreement([candidates], frequencies)[0]))
            captions.append(tokenizer.join(candidates[best]))
    return captions


def _normalise(features: np.ndarray) -> np.ndarray:
    # The clip keeps an image whose features are all zero from becoming NaN.
    return features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
