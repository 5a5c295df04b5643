"""Beam search for a whole batch, vectorised over images and beams.

A finished caption competes with the open ones for the places of the beam, by log-probability; among those
that hold a place in the end, the score by length decides. A beam of one is greedy decoding. The search of an
image stops when no open caption can still beat the finished ones.

Required words follow constrained beam search (Anderson et al. 2017): a beam of its own for every subset of
the requirements that a caption has met; captions end only when all are met. Diverse beam search is
Vijayakumar et al. (2016): groups of beams, each penalised for the words that the groups before it chose at
the same position.

Legend: B images, G groups, S = 2^requirements subsets, K beams a group and subset, P = G·S·K places an image.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captioning.decoding.constraints import Rule, refuse_contradictions, required_bits, whole_numbers
from captioning.decoding.decoded import Decoded, stacked, word_log_probs
from captioning.decoding.hypotheses import Captions, best, extend, keep_best
from captioning.decoding.length import total
from captioning.errors import InputError
from captioning.models.base import CaptionModel, Tree, pick
from captioning.vocabulary import END, START

LengthScore = Callable[[Tensor, Tensor], Tensor]

# Captions that grow side by side, each with its image's regions; six required words, 64 times the places,
# would ask for gigabytes, so that more images are searched part by part.
MOST_ROWS = 4096


class _Setting(NamedTuple):
    """What stays the same during a search."""

    beams: int
    groups: int
    diversity: float
    bits: Tensor
    subsets: int
    rules: Sequence[Rule]
    length_score: LengthScore
    max_words: int
    wanted: int


def beam_search(
    model: CaptionModel,
    features: Tensor,
    mask: Tensor | None = None,
    *,
    max_words: int,
    beam_size: int,
    length_score: LengthScore = total,
    num_best: int = 1,
    rules: Sequence[Rule] = (),
    required: Sequence[int] = (),
    prefix: Sequence[int] = (),
    groups: int = 1,
    diversity: float = 0.0,
) -> Decoded:
    """Search the captions with the highest score.

    Args:
        model: in evaluation mode.
        features: (B, R, D).
        mask: (B, R) True at real regions.
        max_words: T at most; a caption cut there has no END.
        beam_size: captions kept an image (and, with required words, a subset of them).
        length_score: `total`, `average`, or `gnmt` with its alpha.
        num_best: hypotheses returned an image; the second best and later ones are in `others`, of a diverse
            search the best of each group first. Where the rules leave fewer, the rest has no words and a
            log-probability of -inf.
        rules: see `constraints`; the prefix is not held against them.
        required: word ids that every caption must contain; where that fails within `max_words`, the caption
            that meets most of them is returned.
        prefix: word ids that every caption begins with.
        groups: of a diverse search; `beam_size` is divided among them.
        diversity: penalty in nats for each beam of the earlier groups that chose the same word at the same
            position.

    Raises:
        InputError: options that contradict each other.
    """
    _check(max_words=max_words, beam_size=beam_size, groups=groups, num_best=num_best)
    _check_scores(length_score, diversity)
    refuse_contradictions(rules, required, prefix, max_words)
    bits = required_bits(required, model.vocabulary_size, features.device)
    search = (rules, length_score, max_words, num_best)
    setting = _Setting(beam_size // groups, groups, diversity, bits, 2 ** len(required), *search)
    at_once = max(1, MOST_ROWS // (groups * setting.subsets * setting.beams))
    parts = zip(
        features.split(at_once), [None] * len(features) if mask is None else mask.split(at_once), strict=False
    )
    return stacked([_search(model, model.encode(*part), len(part[0]), setting, prefix) for part in parts])


def _check(*, max_words: int, beam_size: int, groups: int, num_best: int) -> None:
    """Refuse sizes that contradict each other."""
    whole_numbers(max_words=max_words, beam_size=beam_size, groups=groups, num_best=num_best)
    if beam_size % groups or num_best > beam_size:
        raise InputError(
            f"beam_size {beam_size} must be a multiple of groups ({groups}) and no less than num_best "
            f"({num_best})"
        )


def _check_scores(length_score: object, diversity: object) -> None:
    """Refuse what is no function and no number."""
    if not callable(length_score) or not isinstance(diversity, int | float):
        raise InputError(
            f"decoding.length_score is {length_score!r} and decoding.diversity {diversity!r}; needed are "
            "one of total, average and gnmt, and a number"
        )


def _search(
    model: CaptionModel, memory: Tree, batch: int, setting: _Setting, prefix: Sequence[int]
) -> Decoded:
    places = setting.groups * setting.subsets * setting.beams
    device = setting.bits.device
    memory = pick(memory, torch.arange(batch, device=device).repeat_interleave(places))
    state, captions, met = _begin(model, memory, batch, places, setting, prefix)
    last = captions.tokens[..., -1] if prefix else torch.full((batch, places), START, device=device)
    finished = _nothing(captions, setting)
    for _ in range(len(prefix), setting.max_words):
        step = model.step(last.reshape(-1), state, memory)
        log_probs = word_log_probs(model.head(step.hidden))  # (B·P, V)
        source, words, gains = _choose(captions, log_probs, met, setting)  # (B, P)
        wins, finished = _compete(captions.sums.gather(1, source) + gains, finished, setting)
        gains = gains.masked_fill(~wins, -torch.inf)
        met = met.gather(1, source) | setting.bits[words]
        attention = step.attention.view(batch, places, -1) if step.attention is not None else None
        captions = extend(captions, source, words, gains, attention)
        finished = _collect(finished, captions, met, setting)
        # A caption that has ended leaves the open ones; its place stays empty.
        captions = captions._replace(sums=captions.sums.masked_fill(words == END, -torch.inf))
        if _all_decided(finished, captions, setting):
            break
        rows = (source + torch.arange(batch, device=device)[:, None] * places).reshape(-1)
        state, last = pick(step.state, rows), words
    return best(_collect_cut(finished, captions, met, setting), setting.wanted, setting.groups)


def _begin(
    model: CaptionModel, memory: Tree, batch: int, places: int, setting: _Setting, prefix: Sequence[int]
) -> tuple[Tree, Captions, Tensor]:
    """Say the prefix in every place; one open caption a group, in the place of the subset it has met."""
    if wrong := [word for word in prefix if not END < word < model.vocabulary_size]:
        raise InputError(f"a prefix has words only, and {wrong[0]} is the id of none; found {list(prefix)}")
    device, state = setting.bits.device, model.start(memory)
    said = torch.tensor([START, *prefix], device=device)
    log_probs, attention = [], []
    for word, following in zip(said[:-1], said[1:], strict=True):
        step = model.step(word.expand(batch * places), state, memory)
        log_probs.append(word_log_probs(model.head(step.hidden))[:, following].view(batch, places))
        attention.append(step.attention)
        state = step.state
    tokens = said[1:].expand(batch, places, -1)
    each = torch.stack(log_probs, -1) if prefix else torch.zeros(batch, places, 0, device=device)
    seen = None
    if prefix and attention[0] is not None:
        seen = torch.stack([a.view(batch, places, -1) for a in attention if a is not None], 2)  # (B, P, t, R)
    met_by_prefix = 0
    for word in prefix:
        met_by_prefix |= int(setting.bits[word])
    first = (
        torch.arange(places, device=device) % (setting.subsets * setting.beams)
        == met_by_prefix * setting.beams
    )
    sums = each.sum(-1).masked_fill(~first, -torch.inf)
    return (
        state,
        Captions(tokens, each, seen, sums),
        torch.full((batch, places), met_by_prefix, device=device),
    )


def _choose(
    captions: Captions, log_probs: Tensor, met: Tensor, setting: _Setting
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the next words: for every place (B, P) the source place, the word, its log-probability."""
    batch, places = captions.sums.shape
    allowed = log_probs
    for rule in setting.rules:
        allowed = rule(captions.tokens.reshape(batch * places, -1), allowed)
    if setting.subsets > 1:
        unmet = met.reshape(-1) != setting.subsets - 1
        allowed = allowed.clone()
        allowed[unmet, END] = -torch.inf
    size, width = allowed.shape[-1], places // setting.groups
    totals = captions.sums[..., None] + allowed.view(batch, places, size)  # (B, P, V)
    said = torch.zeros(batch, size, device=totals.device)
    chosen = []
    for group in range(setting.groups):
        own = slice(group * width, (group + 1) * width)
        scores = totals[:, own] - setting.diversity * said[:, None] if group else totals[:, own]
        flat = _best_of_group(scores, setting) + group * width * size  # (B, S·K)
        chosen.append(flat)
        if setting.groups > 1:
            alive = torch.isfinite(totals.flatten(1).gather(1, flat)).float()
            said.scatter_add_(1, flat % size, alive)
    flat = torch.cat(chosen, 1)  # (B, P)
    source, words = flat // size, flat % size
    gains = log_probs.view(batch, places, size)[torch.arange(batch)[:, None], source, words]
    # A choice for want of any other is marked by a gain of -inf.
    possible = torch.isfinite(totals.flatten(1).gather(1, flat))
    return source, words, gains.masked_fill(~possible, -torch.inf)


def _best_of_group(scores: Tensor, setting: _Setting) -> Tensor:
    """Rank one group's candidates (B, S·K, V), subset by subset: flat indices (B, S·K)."""
    if setting.subsets == 1:
        return scores.flatten(1).topk(setting.beams).indices
    batch, _, size = scores.shape
    beams, subsets = setting.beams, torch.arange(setting.subsets, device=scores.device)
    scores = scores.view(batch, setting.subsets, beams, size)
    # A caption of a subset comes from that subset, by a word that adds nothing to it,
    adds = (setting.bits & ~subsets[:, None]) > 0  # (S, V)
    stays = scores.masked_fill(adds[:, None], -torch.inf).flatten(2).topk(beams)  # (B, S, K) of K·V
    values, places = [stays.values], [stays.indices + subsets[:, None] * beams * size]
    # or from the subset without one of its words, by that word.
    for word in setting.bits.nonzero()[:, 0].tolist():
        bit = int(setting.bits[word])
        origins = (subsets & ~bit)[:, None] * beams + torch.arange(beams, device=scores.device)  # (S, K)
        arrived = scores.flatten(1, 2)[:, origins.flatten(), word].view(batch, setting.subsets, beams)
        values.append(arrived.masked_fill((subsets & bit == 0)[:, None], -torch.inf))
        places.append((origins * size + word).expand(batch, -1, -1))
    chosen = torch.cat(values, 2).topk(beams).indices  # (B, S, K)
    return torch.cat(places, 2).gather(2, chosen).flatten(1)


def _compete(sums: Tensor, finished: Captions, setting: _Setting) -> tuple[Tensor, Captions]:
    """Let finished captions keep only places that they win, by log-probability, against the new ones.

    Returns:
        which of the new captions, with log-probabilities `sums` (B, P), get a place; the finished ones that
        do.
    """
    new = sums.view(len(sums), setting.groups, setting.subsets, setting.beams)
    old = finished.log_probs.sum(-1).masked_fill(torch.isneginf(finished.sums), -torch.inf)
    union = torch.cat([new[:, :, -1], old.view(len(sums), setting.groups, -1)], 2)  # (B, G, 2K)
    stays = torch.zeros_like(union, dtype=torch.bool).scatter(2, union.topk(setting.beams).indices, True)
    wins = torch.ones_like(new, dtype=torch.bool)
    wins[:, :, -1] = stays[..., : setting.beams]  # captions end in the last subset only
    lost = ~stays[..., setting.beams :].flatten(1)
    return wins.flatten(1), finished._replace(sums=finished.sums.masked_fill(lost, -torch.inf))


def _nothing(captions: Captions, setting: _Setting) -> Captions:
    """No finished caption yet; K places a group."""
    batch, places = len(captions.sums), setting.groups * setting.beams
    empty = captions.sums.new_full((batch, places), -torch.inf)
    zeros = captions.sums.new_zeros(batch, places, 0)
    return Captions(zeros.long(), zeros, None, empty)


def _collect(finished: Captions, captions: Captions, met: Tensor, setting: _Setting) -> Captions:
    """Put captions that have just ended beside the finished ones of their group."""
    length = captions.tokens.shape[-1]
    ended = (captions.tokens[..., -1] == END) & torch.isfinite(captions.sums)
    if not ended.any():
        return finished
    scores = setting.length_score(captions.sums, torch.tensor(length, device=met.device))
    return keep_best(
        finished, captions, scores.masked_fill(~ended, -torch.inf), setting.groups, setting.beams
    )


def _collect_cut(finished: Captions, captions: Captions, met: Tensor, setting: _Setting) -> Captions:
    """At the end of the search, let captions that were cut fill places that are still empty.

    Where no caption met all requirements, those that met most come first.
    """
    length = torch.tensor(max(1, captions.tokens.shape[-1]), device=met.device)
    scores = setting.length_score(captions.sums, length)
    missing = (
        setting.subsets.bit_length() - 1 - sum((met >> i) & 1 for i in range(setting.subsets.bit_length()))
    )
    # Far below any finished caption's score: a cut caption is returned only for want of a finished one. In
    # float64, because float32 would round what is left of the score to a quarter of a nat.
    return keep_best(finished, captions, scores.double() - 1e6 * (1 + missing), setting.groups, setting.beams)


def _all_decided(finished: Captions, captions: Captions, setting: _Setting) -> bool:
    """Say whether no open caption can still come among the wanted ones of its image.

    Several wanted ones of a diverse search come from all groups in turn, and from further down a group where
    groups found the same: each then has to be decided by itself, to its last place.
    """
    together = setting.groups == 1 or setting.wanted == 1
    groups, needed = (1, setting.wanted) if together else (setting.groups, setting.beams)
    longest = torch.tensor(setting.max_words, device=captions.sums.device)
    scores = setting.length_score(captions.sums, longest)
    best_open = scores.view(len(scores), groups, -1).amax(2)  # (B, G); no gain can raise it further
    threshold = finished.sums.view(len(scores), groups, -1).topk(needed).values[..., -1]
    return bool(((best_open <= threshold) | torch.isneginf(best_open)).all())
