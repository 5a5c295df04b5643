"""What every decoder returns, and which words it may propose."""

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


def word_log_probs(logits: Tensor) -> Tensor:
    """Log-probabilities (…, V) from logits; PAD and START are never proposed."""
    logits = logits.float().index_fill(-1, torch.tensor([PAD, START], device=logits.device), -torch.inf)
    return logits.log_softmax(-1)
