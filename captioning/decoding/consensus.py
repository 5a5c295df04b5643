"""Consensus re-ranking: draw several captions an image and return the one that agrees most with the others.

Agreement is the mean CIDEr-D of a caption against the other samples: minimum Bayes risk decoding with
CIDEr-D as the utility (for captions, Devlin et al. 2015). All n-grams weigh the same, so that the choice
for one image does not depend on the other images of the batch.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from captioning.decoding.decoded import Decoded
from captioning.decoding.sampling import sample
from captioning.errors import InputError
from captioning.metrics import score_agreement
from captioning.models.base import CaptionModel
from captioning.vocabulary import PAD


def rerank_by_consensus(
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
    """Draw samples and rank them by agreement: the best is the caption, the others are its `alternatives`.

    Args:
        model: in evaluation mode.
        features: (B, R, D).
        mask: (B, R) True at real regions.
        max_words: T at most.
        num_samples: captions drawn an image, at least 2.
        temperature: see `sample`, as for the options after it.
        top_k: only the k most probable words.
        top_p: only the nucleus.
        typical_p: only the typical words.
        seed: of the draws.

    Raises:
        InputError: fewer than 2 samples, or what `sample` refuses.
    """
    if num_samples < 2:
        raise InputError(f"a consensus needs 2 samples an image or more, found num_samples={num_samples}")
    options: dict[str, Any] = {"top_k": top_k, "top_p": top_p, "typical_p": typical_p}
    options |= {"temperature": temperature, "seed": seed}
    first = sample(model, features, mask, max_words=max_words, num_samples=num_samples, **options)
    draws = [first._replace(alternatives=()), *first.alternatives]
    scores = sample_agreement(torch.stack([draw.tokens for draw in draws]))  # (N, B)
    order = scores.argsort(dim=0, descending=True, stable=True)  # (N, B)
    ranked = [_choose(draws, rank) for rank in order]
    return ranked[0]._replace(alternatives=tuple(ranked[1:]))


def sample_agreement(tokens: Tensor) -> Tensor:
    """Mean CIDEr-D in [0, 10] of each sample against the others of its image: (N, B, T) -> (N, B)."""
    images = tokens.transpose(0, 1).tolist()  # B lists of N samples
    groups = [[[word for word in row if word != PAD] for row in samples] for samples in images]
    return torch.from_numpy(np.stack(score_agreement(groups))).T


def _choose(draws: list[Decoded], chosen: Tensor) -> Decoded:
    """Take for every image b the draw `chosen[b]`."""
    rows = torch.arange(len(chosen))
    attention = None
    if draws[0].attention is not None:
        attention = torch.stack([d.attention for d in draws if d.attention is not None])[chosen, rows]
    tokens, log_probs = (
        torch.stack(parts)[chosen, rows] for parts in zip(*(d[:2] for d in draws), strict=True)
    )
    return Decoded(tokens, log_probs, attention)
