"""Consensus re-ranking: draw several captions an image and keep the one that the others agree with most.

Agreement is the mean CIDEr-D of a caption against the other samples (minimum Bayes risk decoding with CIDEr-D
as the utility; for captions Devlin et al. 2015). All n-grams weigh the same, so the choice for one image does
not depend on which other images are in the batch.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from captioning.decoding.decoded import Decoded
from captioning.decoding.sampling import sample
from captioning.errors import InputError
from captioning.metrics import CiderD, DocumentFrequencies
from captioning.models.base import CaptionModel
from captioning.vocabulary import PAD


def consensus(
    model: CaptionModel,
    features: Tensor,
    mask: Tensor | None = None,
    *,
    max_words: int,
    num_samples: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    typical_p: float | None = None,
    seed: int | None = None,
) -> Decoded:
    """Return the sample of each image that agrees most with its others, which follow in `others`.

    Args:
        model: in evaluation mode.
        features: (B, R, D).
        mask: (B, R) True at real regions.
        max_words: T at most.
        num_samples: captions drawn an image, at least 2.
        temperature: see `sample`, as the options after it.
        top_k: the k most probable words only.
        top_p: the nucleus only.
        typical_p: the typical words only.
        seed: of the draws.

    Raises:
        InputError: fewer than 2 samples, or what `sample` refuses.
    """
    if num_samples < 2:
        raise InputError(f"a consensus needs 2 samples an image or more, found num_samples={num_samples}")
    options: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "typical_p": typical_p}
    options |= {"temperature": temperature, "seed": seed}
    first = sample(model, features, mask, max_words=max_words, num_samples=num_samples, **options)
    draws = [first._replace(others=()), *first.others]
    order = agreement(torch.stack([draw.tokens for draw in draws])).argsort(
        dim=0, descending=True, stable=True
    )  # (N, B)
    ranked = [_gather(draws, rank) for rank in order]
    return ranked[0]._replace(others=tuple(ranked[1:]))


def agreement(tokens: Tensor) -> Tensor:
    """Mean CIDEr-D of every sample against the other samples of its image: (N, B, T) ids -> (N, B)."""
    samples, images, _ = tokens.shape
    words = [
        [[word for word in row if word != PAD] for row in image] for image in tokens.transpose(0, 1).tolist()
    ]
    keys = [(image, own) for image in range(images) for own in range(samples)]
    others: dict[Hashable, list[list[int]]] = {
        (image, own): words[image][:own] + words[image][own + 1 :] for image, own in keys
    }
    equal_weights = DocumentFrequencies.of([[[]], [[]]], source="all n-grams weigh the same")
    scores = CiderD(others, equal_weights).scores([(key, words[key[0]][key[1]]) for key in keys])
    return torch.from_numpy(scores).view(images, samples).T


def _gather(draws: list[Decoded], chosen: Tensor) -> Decoded:
    rows = torch.arange(len(chosen))
    attention = None
    if draws[0].attention is not None:
        attention = torch.stack([d.attention for d in draws if d.attention is not None])[chosen, rows]
    tokens, log_probs = (
        torch.stack(parts)[chosen, rows] for parts in zip(*(d[:2] for d in draws), strict=True)
    )
    return Decoded(tokens, log_probs, attention)
