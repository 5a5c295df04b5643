"""Captions under construction, for beam search: extending them, and keeping the best finished ones."""

from typing import NamedTuple

import torch
from torch import Tensor

from captioning.decoding.decoded import Decoded
from captioning.vocabulary import PAD


class Captions(NamedTuple):
    """P captions an image: words, log-probabilities (B, P, t), attention (B, P, t, R), sums (B, P)."""

    tokens: Tensor
    log_probs: Tensor
    attention: Tensor | None
    sums: Tensor


def extend(
    captions: Captions, source: Tensor, words: Tensor, gains: Tensor, attention: Tensor | None
) -> Captions:
    """Take the captions at `source` (B, P) and add a word, its log-probability, its attention (B, P, R)."""
    rows = torch.arange(len(source), device=source.device)[:, None]
    seen = None
    if attention is not None:
        new = attention[rows, source][:, :, None]  # (B, P, 1, R)
        seen = new if captions.attention is None else torch.cat([captions.attention[rows, source], new], 2)
    return Captions(
        torch.cat([captions.tokens[rows, source], words[..., None]], -1),
        torch.cat([captions.log_probs[rows, source], gains[..., None]], -1),
        seen,
        captions.sums.gather(1, source) + gains,
    )


def keep_best(finished: Captions, captions: Captions, scores: Tensor, groups: int, beams: int) -> Captions:
    """Keep the best of finished captions and new ones with `scores` (B, P): `beams` a group; -inf is none."""
    batch = len(scores)
    pooled = torch.cat(
        [finished.sums.view(batch, groups, -1), scores.view(batch, groups, -1)], 2
    )  # (B, G, K + S·K)
    kept, index = pooled.topk(beams)  # (B, G, K)
    width = pooled.shape[2]
    flat = (index + torch.arange(groups, device=index.device)[:, None] * width).flatten(1)
    rows = torch.arange(batch, device=index.device)[:, None]

    def join(old: Tensor, new: Tensor) -> Tensor:
        padding = new.shape[2] - old.shape[2]
        shape = (*old.shape[:2], padding, *new.shape[3:])
        old = torch.cat([old, old.new_zeros(shape)], 2) if padding else old
        parts = [part.view(batch, groups, -1, *part.shape[2:]) for part in (old, new)]
        return torch.cat(parts, 2).flatten(1, 2)[rows, flat]

    attention = None
    if captions.attention is not None:
        blank = captions.attention.new_zeros(*finished.sums.shape, 0, captions.attention.shape[-1])
        attention = join(blank if finished.attention is None else finished.attention, captions.attention)
    return Captions(
        join(finished.tokens, captions.tokens),
        join(finished.log_probs, captions.log_probs),
        attention,
        kept.flatten(1),
    )


def best(finished: Captions, wanted: int, groups: int = 1) -> Decoded:
    """Give the `wanted` best captions of each image, by `sums`: of finished captions, their scores.

    Args:
        finished: each group's from the best on.
        wanted: N; where there are fewer, the rest has no words and a log-probability of -inf.
        groups: the best of each come before the second best of any.
    """
    beams = finished.sums.shape[1] // groups
    place = torch.arange(finished.sums.shape[1], device=finished.sums.device) % beams  # in its group
    same = (finished.tokens[:, :, None] == finished.tokens[:, None]).all(-1)  # (B, P, P)
    again = same.tril(-1).any(-1)  # groups may find the same caption
    scores = finished.sums.double().masked_fill(again, -torch.inf)
    # A group's rank outweighs every score, cut captions' included.
    order = (scores - 1e9 * place * (groups > 1)).topk(wanted).indices  # (B, N)
    none = torch.isneginf(scores.gather(1, order))
    rows = torch.arange(len(order), device=order.device)
    hypotheses = []
    for rank in range(wanted):
        tokens = finished.tokens[rows, order[:, rank]].masked_fill(none[:, rank, None], PAD)
        used = max(1, int((tokens != PAD).sum(1).max()))
        log_probs = finished.log_probs[rows, order[:, rank]].masked_fill(tokens == PAD, 0.0)
        log_probs[:, 0] = log_probs[:, 0].masked_fill(none[:, rank], -torch.inf)
        attention = None
        if finished.attention is not None:
            attention = finished.attention[rows, order[:, rank]][:, :used]
            attention = attention.masked_fill((tokens[:, :used] == PAD)[..., None], 0.0)
        hypotheses.append(Decoded(tokens[:, :used], log_probs[:, :used], attention))
    return hypotheses[0]._replace(others=tuple(hypotheses[1:]))
