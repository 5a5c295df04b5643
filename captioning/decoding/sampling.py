"""One word after the other: greedy decoding and sampling, for whole batches.

The seed drew from softmax(exp(logits)), which is greedy when the model is sure and noise over the whole
vocabulary when it is not (flaw S3); here the draw is from the model's distribution, if wanted sharpened or
cut: temperature; top-k (Fan et al. 2018); top-p, nucleus sampling (Holtzman et al. 2020).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from captioning.decoding.decoded import Decoded, word_log_probs
from captioning.errors import InputError
from captioning.models.base import CaptionModel
from captioning.vocabulary import END, PAD, START


def greedy(model: CaptionModel, features: Tensor, mask: Tensor | None = None, *, max_words: int) -> Decoded:
    """Take the most probable word each time.

    Args:
        model: in evaluation mode.
        features: (B, R, D).
        mask: (B, R) True at real regions.
        max_words: T at most; a caption cut there has no END, because the model did not say it.
    """
    return _one_by_one(model, features, mask, max_words, lambda log_probs: log_probs.argmax(-1))


def sample(
    model: CaptionModel,
    features: Tensor,
    mask: Tensor | None = None,
    *,
    max_words: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Decoded:
    """Draw each word. Keeps gradients, for rewards; callers choose `no_grad`.

    Args:
        model: the log-probabilities returned are its own, whatever the draw was narrowed to.
        features: (B, R, D).
        mask: (B, R) True at real regions.
        max_words: T at most; a caption cut there has no END, because the model did not say it.
        temperature: the logits are divided by it; towards 0 the draw becomes greedy.
        top_k: only the k most probable words.
        top_p: only the most probable words that together reach this probability.
        generator: of the draws; torch's own seed without.
    """
    if temperature <= 0:
        raise InputError(
            f"decoding.temperature is {temperature}; it must be above 0, use decoding=greedy instead of 0"
        )

    def draw(log_probs: Tensor) -> Tensor:
        narrowed = keep_top(log_probs.detach() / temperature, top_k, top_p)
        return torch.multinomial(narrowed.softmax(-1), 1, generator=generator).squeeze(-1)

    return _one_by_one(model, features, mask, max_words, draw)


def keep_top(scores: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Set all but the top scores (B, V) to -inf."""
    if top_k is not None:
        threshold = scores.topk(min(top_k, scores.shape[-1])).values[..., -1:]
        scores = scores.masked_fill(scores < threshold, -torch.inf)
    if top_p is not None:
        ranked, order = scores.sort(-1, descending=True)
        probabilities = ranked.softmax(-1)
        # A word stays while those above it have not yet reached top_p: the most probable one always does.
        beyond = probabilities.cumsum(-1) - probabilities >= top_p
        scores = scores.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return scores


def _one_by_one(
    model: CaptionModel,
    features: Tensor,
    mask: Tensor | None,
    max_words: int,
    choose: Callable[[Tensor], Tensor],
) -> Decoded:
    memory = model.encode(features, mask)
    state, batch = model.start(memory), len(features)
    last = torch.full((batch,), START, device=features.device)
    ended = torch.zeros(batch, dtype=torch.bool, device=features.device)
    tokens, log_probs, attention = [], [], []
    for _ in range(max_words):
        step = model.step(last, state, memory)
        scores = word_log_probs(model.head(step.hidden))  # (B, V)
        chosen = choose(scores)  # (B,)
        last, state = chosen.masked_fill(ended, PAD), step.state
        tokens.append(last)
        log_probs.append(scores.gather(-1, chosen[:, None]).squeeze(-1).masked_fill(ended, 0.0))
        if step.attention is not None:
            attention.append(step.attention * ~ended[:, None])
        ended = ended | (last == END)
        if ended.all():
            break
    return Decoded(
        torch.stack(tokens, 1),
        torch.stack(log_probs, 1),
        torch.stack(attention, 1) if attention else None,
    )
