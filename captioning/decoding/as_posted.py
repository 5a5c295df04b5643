"""Decoding as in the blog post that this project began with (Keydana 2018), to measure what its flaws cost.

The post's decoder may propose START (trained on shifted targets it does so first, flaw S2), and it draws
from softmax(exp(logits)) (flaw S3). A START is fed back to the model but left out of the caption, as in the
captions that the post prints.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from captioning.decoding.constraints import check_whole_numbers
from captioning.decoding.decoded import Decoded
from captioning.models.base import CaptionModel
from captioning.vocabulary import END, PAD, START


def exp_multinomial(logits: Tensor) -> Tensor:
    """Draw from softmax(exp(logits)): (B, V) -> (B,). Greedy at large logits, nearly uniform at others."""
    # In float64, exp overflows at 709; a difference that far up decides the draw anyway.
    sharpened = logits.double().clamp(max=700.0).exp().masked_fill(logits.isneginf(), -torch.inf)
    return torch.multinomial(sharpened.softmax(-1), 1).squeeze(-1)


def argmax_words(logits: Tensor) -> Tensor:
    """Return the word of the highest logit: (B, V) -> (B,)."""
    return logits.argmax(-1)


def decode_as_posted(
    model: CaptionModel,
    features: Tensor,
    mask: Tensor | None = None,
    *,
    max_words: int,
    draw: Callable[[Tensor], Tensor],
) -> Decoded:
    """Decode with START among the words that the model may choose.

    Args:
        model: in evaluation mode.
        features: (B, R, D).
        mask: (B, R) True at real regions.
        max_words: T at most, not counting one START.
        draw: from logits (B, V) to words (B,): `exp_multinomial` or `argmax_words`.
    """
    check_whole_numbers(max_words=max_words)
    memory = model.encode(features, mask)
    state = model.start(memory)
    last = torch.full((len(features),), START, device=features.device)
    ended = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    tokens, log_probs, attention = [], [], []
    for _ in range(max_words + 1):
        step = model.step(last, state, memory)
        logits = model.head(step.hidden).float()  # (B, V)
        logits[:, PAD] = -torch.inf
        chosen = draw(logits).masked_fill(ended, PAD)  # (B,)
        scores = logits.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)  # (B,)
        last, state = chosen, step.state
        tokens.append(chosen)
        log_probs.append(scores.masked_fill(ended | (chosen == START), 0.0))
        attention.append(step.attention)
        ended = ended | (chosen == END)
        if ended.all():
            break
    return _remove_start(torch.stack(tokens, 1), torch.stack(log_probs, 1), attention, max_words)


def _remove_start(
    tokens: Tensor, log_probs: Tensor, attention: list[Tensor | None], max_words: int
) -> Decoded:
    """Move every caption's words (B, T) left over its STARTs, with their log-probabilities and attention."""
    removed = (tokens == START) | (tokens == PAD)  # (B, T)
    # A stable sort of this mask puts the words first, in their order.
    order = removed.int().argsort(dim=1, stable=True)[:, :max_words]
    kept = ~removed.gather(1, order)
    moved = None
    if attention[0] is not None:
        maps = torch.stack([weights for weights in attention if weights is not None], 1)  # (B, T, R)
        moved = maps.gather(1, order[..., None].expand(-1, -1, maps.shape[-1])) * kept[..., None]
    return Decoded(tokens.gather(1, order) * kept, log_probs.gather(1, order) * kept, moved)
