"""Beam search for a whole batch, vectorised over images and beams.

Finished captions compete with open ones for the places of the beam, by log-probability; among the captions
that hold a place in the end, the length score decides. A beam of one is greedy decoding. The search of an
image stops when no open caption can still beat the finished ones.

Required words are found by constrained beam search (Anderson et al. 2017): every subset of the requirements
has a beam for the captions that have met exactly this subset, and captions end only when all are met.
Diverse beam search is that of Vijayakumar et al. (2016): groups of beams, each penalised for the words that
the groups before it chose at the same position. Rules (`constraints`) and length scores (`length`) are
functions handed in.

Legend: B images, G groups, S = 2^requirements subsets, K beams a group and subset, P = G·S·K places an image.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captioning.decoding.constraints import (
    Rule,
    apply_rules,
    check_satisfiable,
    check_whole_numbers,
    required_bits,
)
from captioning.decoding.decoded import Decoded, concatenate, word_log_probs
from captioning.decoding.hypotheses import Captions, best, extend, keep_best
from captioning.decoding.length import total
from captioning.errors import InputError
from captioning.models.base import CaptionModel, Tree, pick
from captioning.vocabulary import END, START

LengthScore = Callable[[Tensor, Tensor], Tensor]

# Rows of the model's batch (images times places). Six required words take 64 times the places and would ask
# for gigabytes, so larger batches are searched in parts.
MAX_ROWS = 4096


class _Settings(NamedTuple):
    """What stays the same during a search; `bits` (V,) are those of `required_bits`."""

    beams: int
    groups: int
    diversity: float
    bits: Tensor
    subsets: int
    rules: Sequence[Rule]
    length_score: LengthScore
    max_words: int
    num_best: int


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
        num_best: hypotheses returned an image; the second best and later ones are the `alternatives`, of a
            diverse search the best of each group first. Where the rules leave fewer, the rest has no words
            and a log-probability of -inf.
        rules: see `constraints`; they do not apply to the prefix.
        required: word ids that captions must contain; failing that, the caption with most of them wins.
        prefix: word ids that every caption begins with.
        groups: of a diverse search; `beam_size` is divided among them.
        diversity: penalty in nats for each beam of the earlier groups that chose the same word at the same
            position.

    Raises:
        InputError: options that contradict each other.
    """
    _check_sizes(max_words=max_words, beam_size=beam_size, groups=groups, num_best=num_best)
    _check_scoring(length_score, diversity)
    check_satisfiable(rules, required, prefix, max_words)
    bits = required_bits(required, model.vocabulary_size, features.device)
    sizes = (beam_size // groups, groups, diversity, bits, 2 ** len(required))
    settings = _Settings(*sizes, rules, length_score, max_words, num_best)
    part_size = max(1, MAX_ROWS // (groups * settings.subsets * settings.beams))
    masks = [None] * len(features) if mask is None else mask.split(part_size)
    parts = zip(features.split(part_size), masks, strict=False)
    return concatenate(
        [_search(model, model.encode(*part), len(part[0]), settings, prefix) for part in parts]
    )


def _check_sizes(*, max_words: int, beam_size: int, groups: int, num_best: int) -> None:
    check_whole_numbers(max_words=max_words, beam_size=beam_size, groups=groups, num_best=num_best)
    if beam_size % groups or num_best > beam_size:
        raise InputError(
            f"beam_size {beam_size} must be a multiple of groups ({groups}) and no less than num_best "
            f"({num_best})"
        )


def _check_scoring(length_score: object, diversity: object) -> None:
    if not callable(length_score) or not isinstance(diversity, int | float):
        raise InputError(
            f"decoding.length_score is {length_score!r} and decoding.diversity {diversity!r}; needed are "
            "one of total, average and gnmt, and a number"
        )


def _search(
    model: CaptionModel, memory: Tree, batch: int, settings: _Settings, prefix: Sequence[int]
) -> Decoded:
    places = settings.groups * settings.subsets * settings.beams
    device = settings.bits.device
    # The model's batch is B·P rows: place p of image b is row b·P + p.
    memory = pick(memory, torch.arange(batch, device=device).repeat_interleave(places))
    state, captions, met = _begin(model, memory, batch, places, settings, prefix)
    last = captions.tokens[..., -1] if prefix else torch.full((batch, places), START, device=device)  # (B, P)
    finished = _no_captions(captions, settings)
    for _ in range(len(prefix), settings.max_words):
        step = model.step(last.reshape(-1), state, memory)
        log_probs = word_log_probs(model.head(step.hidden))  # (B·P, V)
        source, words, gains = _choose(captions, log_probs, met, settings)  # (B, P)
        # A new caption that loses its place to a finished one is marked by a gain of -inf.
        wins, finished = _compete(captions.sums.gather(1, source) + gains, finished, settings)
        gains = gains.masked_fill(~wins, -torch.inf)
        met = met.gather(1, source) | settings.bits[words]
        attention = step.attention.view(batch, places, -1) if step.attention is not None else None
        captions = extend(captions, source, words, gains, attention)
        finished = _collect(finished, captions, met, settings)
        # A caption that has ended leaves the open ones; its place stays empty.
        captions = captions._replace(sums=captions.sums.masked_fill(words == END, -torch.inf))
        if _all_decided(finished, captions, settings):
            break
        # The state follows each caption to its new place.
        rows = (source + torch.arange(batch, device=device)[:, None] * places).reshape(-1)  # (B·P,)
        state, last = pick(step.state, rows), words
    return best(_collect_cut(finished, captions, met, settings), settings.num_best, settings.groups)


def _begin(
    model: CaptionModel, memory: Tree, batch: int, places: int, settings: _Settings, prefix: Sequence[int]
) -> tuple[Tree, Captions, Tensor]:
    """Run the prefix in every place.

    Returns:
        the model's state, the captions so far, and the requirements met (B, P), as bits.
    """
    if wrong := [word for word in prefix if not END < word < model.vocabulary_size]:
        raise InputError(f"a prefix has words only, and {wrong[0]} is the id of none; found {list(prefix)}")
    device, state = settings.bits.device, model.start(memory)
    inputs = torch.tensor([START, *prefix], device=device)
    log_probs, attention = [], []
    for word, target in zip(inputs[:-1], inputs[1:], strict=True):
        step = model.step(word.expand(batch * places), state, memory)
        log_probs.append(word_log_probs(model.head(step.hidden))[:, target].view(batch, places))
        attention.append(step.attention)
        state = step.state
    tokens = inputs[1:].expand(batch, places, -1)  # (B, P, t)
    scores = torch.stack(log_probs, -1) if prefix else torch.zeros(batch, places, 0, device=device)
    maps = None
    if prefix and attention[0] is not None:
        maps = torch.stack([a.view(batch, places, -1) for a in attention if a is not None], 2)  # (B, P, t, R)
    met_by_prefix = 0
    for word in prefix:
        met_by_prefix |= int(settings.bits[word])
    # Equal captions in several places would fill the beam with copies: each group begins with one open
    # caption, in the first place of the subset that the prefix has met.
    place_in_group = torch.arange(places, device=device) % (settings.subsets * settings.beams)
    is_open = place_in_group == met_by_prefix * settings.beams
    sums = scores.sum(-1).masked_fill(~is_open, -torch.inf)
    return (
        state,
        Captions(tokens, scores, maps, sums),
        torch.full((batch, places), met_by_prefix, device=device),
    )


def _choose(
    captions: Captions, log_probs: Tensor, met: Tensor, settings: _Settings
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the next words: for every place (B, P) the source place, the word, its log-probability."""
    batch, places = captions.sums.shape
    allowed = apply_rules(settings.rules, captions.tokens.reshape(batch * places, -1), log_probs)  # (B·P, V)
    if settings.subsets > 1:
        # Captions end only when all requirements are met, that is, in the last subset.
        unmet = met.reshape(-1) != settings.subsets - 1
        allowed = allowed.clone()
        allowed[unmet, END] = -torch.inf
    size, width = allowed.shape[-1], places // settings.groups
    totals = captions.sums[..., None] + allowed.view(batch, places, size)  # (B, P, V)
    # How many beams of the groups so far have chosen each word at this position.
    times_chosen = torch.zeros(batch, size, device=totals.device)
    chosen = []
    for group in range(settings.groups):
        in_group = slice(group * width, (group + 1) * width)
        scores = totals[:, in_group]  # (B, S·K, V)
        if group:
            scores = scores - settings.diversity * times_chosen[:, None]
        flat = _best_of_group(scores, settings) + group * width * size  # (B, S·K) into P·V
        chosen.append(flat)
        if settings.groups > 1:
            alive = torch.isfinite(totals.flatten(1).gather(1, flat)).float()
            times_chosen.scatter_add_(1, flat % size, alive)
    flat = torch.cat(chosen, 1)  # (B, P)
    source, words = flat // size, flat % size
    # The gain is the model's own log-probability, without the diversity penalty.
    gains = log_probs.view(batch, places, size)[torch.arange(batch)[:, None], source, words]
    # topk fills its places with forbidden choices where too few are allowed: a gain of -inf marks them.
    possible = torch.isfinite(totals.flatten(1).gather(1, flat))
    return source, words, gains.masked_fill(~possible, -torch.inf)


def _best_of_group(scores: Tensor, settings: _Settings) -> Tensor:
    """Rank one group's candidates (B, S·K, V) subset by subset: flat indices (B, S·K) into S·K·V."""
    if settings.subsets == 1:
        return scores.flatten(1).topk(settings.beams).indices
    batch, _, size = scores.shape
    beams, subsets = settings.beams, torch.arange(settings.subsets, device=scores.device)
    scores = scores.view(batch, settings.subsets, beams, size)
    # A caption of a subset comes from that subset, by a word that adds nothing to it,
    adds = (settings.bits & ~subsets[:, None]) > 0  # (S, V)
    stays = scores.masked_fill(adds[:, None], -torch.inf).flatten(2).topk(beams)  # (B, S, K) into K·V
    values, places = [stays.values], [stays.indices + subsets[:, None] * beams * size]
    # or from the subset without one of its words, by that word.
    for word in settings.bits.nonzero()[:, 0].tolist():
        bit = int(settings.bits[word])
        origins = (subsets & ~bit)[:, None] * beams + torch.arange(beams, device=scores.device)  # (S, K)
        arrived = scores.flatten(1, 2)[:, origins.flatten(), word].view(batch, settings.subsets, beams)
        values.append(arrived.masked_fill((subsets & bit == 0)[:, None], -torch.inf))
        places.append((origins * size + word).expand(batch, -1, -1))
    chosen = torch.cat(values, 2).topk(beams).indices  # (B, S, K)
    return torch.cat(places, 2).gather(2, chosen).flatten(1)


def _compete(sums: Tensor, finished: Captions, settings: _Settings) -> tuple[Tensor, Captions]:
    """Let finished captions keep only places that they win, by log-probability, against the new ones.

    Returns:
        which of the new captions, with log-probabilities `sums` (B, P), get a place; the finished ones that
        do.
    """
    new = sums.view(len(sums), settings.groups, settings.subsets, settings.beams)
    # The sums of finished captions are scores; their log-probabilities are summed again.
    old = finished.log_probs.sum(-1).masked_fill(torch.isneginf(finished.sums), -torch.inf)
    union = torch.cat([new[:, :, -1], old.view(len(sums), settings.groups, -1)], 2)  # (B, G, 2K)
    stays = torch.zeros_like(union, dtype=torch.bool).scatter(2, union.topk(settings.beams).indices, True)
    wins = torch.ones_like(new, dtype=torch.bool)
    wins[:, :, -1] = stays[..., : settings.beams]  # captions end in the last subset only
    lost = ~stays[..., settings.beams :].flatten(1)
    return wins.flatten(1), finished._replace(sums=finished.sums.masked_fill(lost, -torch.inf))


def _no_captions(captions: Captions, settings: _Settings) -> Captions:
    """Return K empty places a group for the captions that will finish."""
    batch, places = len(captions.sums), settings.groups * settings.beams
    empty = captions.sums.new_full((batch, places), -torch.inf)
    zeros = captions.sums.new_zeros(batch, places, 0)
    return Captions(zeros.long(), zeros, None, empty)


def _collect(finished: Captions, captions: Captions, met: Tensor, settings: _Settings) -> Captions:
    """Put captions that have just ended beside the finished ones of their group."""
    length = captions.tokens.shape[-1]
    ended = (captions.tokens[..., -1] == END) & torch.isfinite(captions.sums)
    if not ended.any():
        return finished
    scores = settings.length_score(captions.sums, torch.tensor(length, device=met.device))
    return keep_best(
        finished, captions, scores.masked_fill(~ended, -torch.inf), settings.groups, settings.beams
    )


def _collect_cut(finished: Captions, captions: Captions, met: Tensor, settings: _Settings) -> Captions:
    """At the end of the search, let captions that were cut fill places that are still empty.

    Where no caption met all requirements, those that met most come first.
    """
    length = torch.tensor(max(1, captions.tokens.shape[-1]), device=met.device)
    scores = settings.length_score(captions.sums, length)
    missing = (
        settings.subsets.bit_length() - 1 - sum((met >> i) & 1 for i in range(settings.subsets.bit_length()))
    )
    # Far below any finished caption's score: a cut caption is returned only for want of a finished one. In
    # float64, because float32 would round what is left of the score to a quarter of a nat.
    scores = scores.double() - 1e6 * (1 + missing)
    return keep_best(finished, captions, scores, settings.groups, settings.beams)


def _all_decided(finished: Captions, captions: Captions, settings: _Settings) -> bool:
    """Return whether no open caption can still become one of the `num_best` of its image."""
    # Several hypotheses of a diverse search come from all groups in turn, and from further down a group
    # where groups found the same: each group then has to be decided by itself, to its last place.
    together = settings.groups == 1 or settings.num_best == 1
    groups, needed = (1, settings.num_best) if together else (settings.groups, settings.beams)
    # Log-probabilities only fall, and the score is highest at the largest length: no gain can raise it
    # further.
    longest = torch.tensor(settings.max_words, device=captions.sums.device)
    scores = settings.length_score(captions.sums, longest)
    best_open = scores.view(len(scores), groups, -1).amax(2)  # (B, G)
    threshold = finished.sums.view(len(scores), groups, -1).topk(needed).values[..., -1]  # (B, G)
    return bool(((best_open <= threshold) | torch.isneginf(best_open)).all())
