"""What every decoder returns, and the log-probabilities from which every decoder chooses its words."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captioning.vocabulary import PAD, START, Vocabulary


class Decoded(NamedTuple):
    """Captions of B images.

    tokens: (B, T) word ids without START; END where a caption ended, PAD after it.
    log_probs: (B, T) log-probability of each word under the model, in nats; 0 at PAD.
    attention: (B, T, R) attention weights for each word, or None; 0 at PAD.
    alternatives: further hypotheses (n-best lists) or samples of the same images, best first.
    """

    tokens: Tensor
    log_probs: Tensor
    attention: Tensor | None
    alternatives: tuple["Decoded", ...] = ()


def alternatives(decoded: Decoded, vocabulary: Vocabulary, row: int) -> tuple[tuple[str, float], ...]:
    """Return the alternative captions of one image: text and log-probability in nats, best first.

    Places that a search could not fill, with a log-probability of -inf, are left out.
    """
    captions = [
        (vocabulary.decode(other.tokens[row].tolist()), float(other.log_probs[row].sum()))
        for other in decoded.alternatives
    ]
    return tuple((text, log_prob) for text, log_prob in captions if log_prob > -math.inf)


def concatenate(parts: Sequence[Decoded]) -> Decoded:
    """Join the captions of several batches into one batch, padded to the longest."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.tokens.shape[1] for part in parts)

    def pad_and_join(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(
            [
                torch.cat([t, t.new_zeros(len(t), longest - t.shape[1], *t.shape[2:])], 1)
                if t.shape[1] < longest
                else t
                for t in tensors
            ]
        )

    attention = [part.attention for part in parts if part.attention is not None]
    return Decoded(
        pad_and_join([part.tokens for part in parts]),
        pad_and_join([part.log_probs for part in parts]),
        pad_and_join(attention) if attention else None,
        tuple(concatenate(rank) for rank in zip(*(part.alternatives for part in parts), strict=True)),
    )


def word_log_probs(logits: Tensor) -> Tensor:
    """Normalise logits (…, V) to log-probabilities; PAD and START get -inf, so no decoder proposes them."""
    logits = logits.float().index_fill(-1, torch.tensor([PAD, START], device=logits.device), -torch.inf)
    return logits.log_softmax(-1)
