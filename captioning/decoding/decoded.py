"""What every decoder returns, and which words it may propose."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captioning.vocabulary import PAD, START


class Decoded(NamedTuple):
    """Captions of B images.

    tokens: (B, T) word ids without START; END where a caption ended, PAD after it.
    log_probs: (B, T) log-probability of each word under the model, in nats; 0 at PAD.
    attention: (B, T, R) where the model looked for each word, or None; 0 at PAD.
    others: further hypotheses (n-best lists) or samples of the same images, best first.
    """

    tokens: Tensor
    log_probs: Tensor
    attention: Tensor | None
    others: tuple["Decoded", ...] = ()


def stacked(parts: Sequence[Decoded]) -> Decoded:
    """Put the captions of several batches below each other, as long as the longest."""
    if len(parts) == 1:
        return parts[0]
    longest = max(part.tokens.shape[1] for part in parts)

    def column(tensors: Sequence[Tensor]) -> Tensor:
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
        column([part.tokens for part in parts]),
        column([part.log_probs for part in parts]),
        column(attention) if attention else None,
        tuple(stacked(rank) for rank in zip(*(part.others for part in parts), strict=True)),
    )


def word_log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities (…, V) from logits; PAD and START are never proposed."""
    logits = logits.float().index_fill(-1, torch.tensor([PAD, START], device=logits.device), -torch.inf)
    return logits.log_softmax(-1)
