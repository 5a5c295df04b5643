"""Greedy decoding and sampling: one word after the other, for whole batches.

A draw is from the model's distribution, which may be sharpened or cut: temperature; top-k (Fan et al.
2018); top-p, nucleus sampling (Holtzman et al. 2020); typical sampling (Meister et al. 2022). The draw of
the post, from softmax(exp(logits)), is in `as_posted`.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captioning.decoding.constraints import (
    Rule,
    apply_rules,
    check_probabilities,
    check_satisfiable,
    check_whole_numbers,
)
from captioning.decoding.decoded import Decoded, word_log_probs
from captioning.errors import InputError
from captioning.models.base import CaptionModel, pick
from captioning.vocabulary import END, PAD, START

MOST_KEPT = 0.8  # the share of captions that still run, at or below which the others leave the batch


def greedy(
    model: CaptionModel,
    features: Tensor,
    mask: Tensor | None = None,
    *,
    max_words: int,
    rules: Sequence[Rule] = (),
) -> Decoded:
    """Choose the most probable word at every step.

    Args:
        model: in evaluation mode.
        features: (B, R, D).
        mask: (B, R) True at real regions.
        max_words: T at most; a caption cut there has no END, because the model did not propose one.
        rules: see `constraints`; a caption to which they leave no word ends.
    """
    check_whole_numbers(max_words=max_words)
    return _one_by_one(model, features, mask, max_words, rules, lambda log_probs: log_probs.argmax(-1))


def sample(
    model: CaptionModel,
    features: Tensor,
    mask: Tensor | None = None,
    *,
    max_words: int,
    rules: Sequence[Rule] = (),
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    typical_p: float | None = None,
    num_samples: int = 1,
    seed: int | None = None,
) -> Decoded:
    """Draw every word at random. Keeps gradients, for rewards; callers choose `no_grad`.

    Args:
        model: the log-probabilities returned are the model's, whatever the draw was narrowed to.
        features: (B, R, D).
        mask: (B, R) True at real regions.
        max_words: T at most; a caption cut there has no END, because the model did not propose one.
        rules: see `constraints`; a caption to which they leave no word ends.
        temperature: divides the logits; towards 0 the draw becomes greedy.
        top_k: only the k most probable words.
        top_p: only the most probable words that together reach this probability.
        typical_p: only the words whose surprisal is nearest to the entropy, up to this probability.
        num_samples: captions an image; those after the first are the `alternatives`.
        seed: of the draws, the same at every call; None draws from torch's global state. What an image gets
            still depends on which images are in its batch.

    Raises:
        InputError: a temperature that is not above 0, or options that leave no word.
    """
    check_whole_numbers(max_words=max_words, num_samples=num_samples)
    if top_k is not None:
        check_whole_numbers(top_k=top_k)
    check_probabilities(top_p=top_p, typical_p=typical_p)
    _check_temperature(temperature)
    generator = None if seed is None else torch.Generator(features.device).manual_seed(seed)

    def draw(log_probs: Tensor) -> Tensor:
        narrowed = keep_top(log_probs.detach() / temperature, top_k, top_p)
        if typical_p is not None:
            narrowed = keep_typical(narrowed, typical_p)
        return torch.multinomial(narrowed.softmax(-1), 1, generator=generator).squeeze(-1)

    return _one_by_one(model, features, mask, max_words, rules, draw, num_samples)


def _check_temperature(temperature: object) -> None:
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise InputError(
            f"decoding.temperature is {temperature}; it must be a number above 0, use decoding=greedy "
            "instead of 0"
        )


def keep_top(scores: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Set all but the top-k or top-p scores (B, V) to -inf."""
    if top_k is not None:
        threshold = scores.topk(min(top_k, scores.shape[-1])).values[..., -1:]
        scores = scores.masked_fill(scores < threshold, -torch.inf)
    if top_p is not None:
        ranked, order = scores.sort(-1, descending=True)
        probabilities = ranked.softmax(-1)
        # A word stays while those above it have not reached top_p, so the most probable one always stays.
        beyond = probabilities.cumsum(-1) - probabilities >= top_p
        scores = scores.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return scores


def keep_typical(scores: Tensor, probability: float) -> Tensor:
    """Set all scores (B, V) to -inf but those of the words whose surprisal is nearest to the entropy."""
    log_probs = scores.log_softmax(-1)
    entropy = torch.special.entr(log_probs.exp()).sum(-1, keepdim=True)
    order = (-log_probs - entropy).abs().argsort(-1)  # (B, V)
    ranked = log_probs.exp().gather(-1, order)
    # As for top-p, the first word beyond the probability still belongs to it.
    beyond = ranked.cumsum(-1) - ranked >= probability
    return scores.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)


def _one_by_one(
    model: CaptionModel,
    features: Tensor,
    mask: Tensor | None,
    max_words: int,
    rules: Sequence[Rule],
    choose: Callable[[Tensor], Tensor],
    copies: int = 1,
) -> Decoded:
    """Decode with `choose`, from log-probabilities (B, V) to words (B,); `copies` captions an image."""
    check_satisfiable(rules, (), (), max_words)
    # The image is encoded once for all its samples. Sample k of image b is row k * B + b.
    memory, batch = model.encode(features, mask), len(features) * copies
    if copies > 1:
        memory = pick(memory, torch.arange(len(features), device=features.device).repeat(copies))
    state = model.start(memory)
    last = torch.full((batch,), START, device=features.device)
    rows = torch.arange(batch, device=features.device)  # of the A captions that go through the model
    ended = torch.zeros(batch, dtype=torch.bool, device=features.device)  # (A,)
    only_end = torch.full((model.vocabulary_size,), -torch.inf, device=features.device)
    only_end[END] = 0.0
    tokens: list[Tensor] = []
    log_probs, attention = [], []
    for _ in range(max_words):
        step = model.step(last, state, memory)
        scores = word_log_probs(model.head(step.hidden))  # (A, V)
        so_far = torch.stack(tokens, 1)[rows] if tokens else last.new_empty(batch, 0)  # (A, t)
        allowed = apply_rules(rules, so_far, scores)  # (A, V)
        stuck = torch.isneginf(allowed).all(-1, keepdim=True)
        chosen = choose(torch.where(stuck, only_end, allowed))  # (A,)
        last, state = chosen.masked_fill(ended, PAD), step.state
        gains = scores.gather(-1, chosen[:, None]).squeeze(-1).masked_fill(ended, 0.0)
        tokens.append(_in_rows(rows, last, batch))
        log_probs.append(_in_rows(rows, gains, batch))
        if step.attention is not None:
            attention.append(_in_rows(rows, step.attention * ~ended[:, None], batch))
        ended = ended | (last == END)
        running = (~ended).nonzero().squeeze(1)
        if not len(running):
            break
        # Captions that have ended leave the batch, several at once, because the memory of the rest is copied.
        if len(running) <= MOST_KEPT * len(rows):
            rows, last, ended = rows[running], last[running], ended[running]
            state, memory = pick(state, running), pick(memory, running)
    maps = torch.stack(attention, 1).chunk(copies) if attention else [None] * copies
    samples = zip(
        torch.stack(tokens, 1).chunk(copies), torch.stack(log_probs, 1).chunk(copies), maps, strict=True
    )
    first, *rest = (Decoded(*parts) for parts in samples)
    return first._replace(alternatives=tuple(rest))


def _in_rows(rows: Tensor, values: Tensor, batch: int) -> Tensor:
    """Put values (A, …) into the rows (A,) of zeros (B, …)."""
    if len(rows) == batch:
        return values
    return values.new_zeros(batch, *values.shape[1:]).index_copy(0, rows, values)
