"""Captions under construction, for beam search: extend them, keep the best finished ones, return them.

Legend: B images, P places an image (its captions that grow side by side), G groups of places, t words so far.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from captioning.decoding.decoded import Decoded
from captioning.vocabulary import PAD


class Captions(NamedTuple):
    """P captions an image.

    tokens: (B, P, t) word ids.
    log_probs: (B, P, t) log-probability of each word, in nats.
    attention: (B, P, t, R) or None.
    sums: (B, P) log-probability of the whole caption, or its score once it has finished; -inf marks an empty
        place.
    """

    tokens: Tensor
    log_probs: Tensor
    attention: Tensor | None
    sums: Tensor


def extend(
    captions: Captions, source: Tensor, words: Tensor, gains: Tensor, attention: Tensor | None
) -> Captions:
    """Add a word to the captions at the places `source`.

    Args:
        captions: before this word.
        source: (B, P) the place from which each new caption comes.
        words: (B, P) ids.
        gains: (B, P) log-probabilities of the words.
        attention: (B, P, R) weights at the source places, or None.
    """
    rows = torch.arange(len(source), device=source.device)[:, None]  # (B, 1)
    maps = None
    if attention is not None:
        maps = attention[rows, source][:, :, None]  # (B, P, 1, R)
        if captions.attention is not None:
            maps = torch.cat([captions.attention[rows, source], maps], 2)  # (B, P, t+1, R)
    return Captions(
        torch.cat([captions.tokens[rows, source], words[..., None]], -1),
        torch.cat([captions.log_probs[rows, source], gains[..., None]], -1),
        maps,
        captions.sums.gather(1, source) + gains,
    )


def keep_best(finished: Captions, captions: Captions, scores: Tensor, groups: int, beams: int) -> Captions:
    """Pool finished captions with new ones and keep the best `beams` of each group.

    Args:
        finished: G·K places, with scores as their sums.
        captions: new ones, P places.
        scores: (B, P) of the new ones; -inf excludes one.
        groups: G.
        beams: K.
    """
    batch = len(scores)
    pooled = torch.cat(
        [finished.sums.view(batch, groups, -1), scores.view(batch, groups, -1)], 2
    )  # (B, G, K + P/G)
    kept, index = pooled.topk(beams)  # (B, G, K)
    # The index within a group becomes one into the row of all groups.
    width = pooled.shape[2]
    flat = (index + torch.arange(groups, device=index.device)[:, None] * width).flatten(1)  # (B, G·K)
    rows = torch.arange(batch, device=index.device)[:, None]

    def select(old: Tensor, new: Tensor) -> Tensor:
        # Finished captions are shorter than new ones: they get padding, which is 0 in every field.
        missing = new.shape[2] - old.shape[2]
        shape = (*old.shape[:2], missing, *new.shape[3:])
        old = torch.cat([old, old.new_zeros(shape)], 2) if missing else old
        parts = [part.view(batch, groups, -1, *part.shape[2:]) for part in (old, new)]
        return torch.cat(parts, 2).flatten(1, 2)[rows, flat]

    attention = None
    if captions.attention is not None:
        blank = captions.attention.new_zeros(*finished.sums.shape, 0, captions.attention.shape[-1])
        attention = select(blank if finished.attention is None else finished.attention, captions.attention)
    return Captions(
        select(finished.tokens, captions.tokens),
        select(finished.log_probs, captions.log_probs),
        attention,
        kept.flatten(1),
    )


def best(finished: Captions, num_best: int, groups: int = 1) -> Decoded:
    """Return the best captions of each image, by their scores.

    Args:
        finished: in each group from the best on.
        num_best: N; where there are fewer, the rest has no words and a log-probability of -inf.
        groups: G; the best of each group come before the second best of any.
    """
    beams = finished.sums.shape[1] // groups
    rank_in_group = torch.arange(finished.sums.shape[1], device=finished.sums.device) % beams
    # Groups may find the same caption; it counts once, in the first of them.
    same = (finished.tokens[:, :, None] == finished.tokens[:, None]).all(-1)  # (B, P, P)
    duplicate = same.tril(-1).any(-1)  # (B, P)
    scores = finished.sums.double().masked_fill(duplicate, -torch.inf)
    # A group's rank outweighs every score, those of captions cut at the end included (1e6 below the rest).
    order = (scores - 1e9 * rank_in_group * (groups > 1)).topk(num_best).indices  # (B, N)
    empty = torch.isneginf(scores.gather(1, order))
    rows = torch.arange(len(order), device=order.device)
    hypotheses = []
    for rank in range(num_best):
        tokens = finished.tokens[rows, order[:, rank]].masked_fill(empty[:, rank, None], PAD)  # (B, t)
        used = max(1, int((tokens != PAD).sum(1).max()))
        log_probs = finished.log_probs[rows, order[:, rank]].masked_fill(tokens == PAD, 0.0)
        log_probs[:, 0] = log_probs[:, 0].masked_fill(empty[:, rank], -torch.inf)
        attention = None
        if finished.attention is not None:
            attention = finished.attention[rows, order[:, rank]][:, :used]  # (B, t, R)
            attention = attention.masked_fill((tokens[:, :used] == PAD)[..., None], 0.0)
        hypotheses.append(Decoded(tokens[:, :used], log_probs[:, :used], attention))
    return hypotheses[0]._replace(alternatives=tuple(hypotheses[1:]))
