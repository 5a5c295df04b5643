"""Captions as the seed post wrote them, to reproduce its flaws and see what each costs.

The post's decoder may say START (trained on shifted targets it does so first, flaw S2), and draws from
softmax(exp(logits)) (flaw S3). START is heard by the model but is no word of the caption, as in the post's
printed captions.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from captioning.decoding.constraints import whole_numbers
from captioning.decoding.decoded import Decoded
from captioning.models.base import CaptionModel
from captioning.vocabulary import END, PAD, START


def exp_multinomial(logits: Tensor) -> Tensor:
    """Draw from softmax(exp(logits)): (B, V) -> (B,). Greedy where a logit is large, near uniform else."""
    sharpened = logits.double().clamp(max=700.0).exp().masked_fill(logits.isneginf(), -torch.inf)
    return torch.multinomial(sharpened.softmax(-1), 1).squeeze(-1)


def most_likely(logits: Tensor) -> Tensor:
    """Take the word of the highest logit: (B, V) -> (B,)."""
    return logits.argmax(-1)


def as_posted(
    model: CaptionModel,
    features: Tensor,
    mask: Tensor | None = None,
    *,
    max_words: int,
    draw: Callable[[Tensor], Tensor],
) -> Decoded:
    """Write captions in which the model may say START, which is then left out.

    Args:
        model: in evaluation mode.
        features: (B, R, D).
        mask: (B, R) True at real regions.
        max_words: T at most, not counting one START.
        draw: `exp_multinomial` or `most_likely`.
    """
    whole_numbers(max_words=max_words)
    memory = model.encode(features, mask)
    state = model.start(memory)
    last = torch.full((len(features),), START, device=features.device)
    ended = torch.zeros(len(features), dtype=torch.bool, device=features.device)
    said, log_probs, looks = [], [], []
    for _ in range(max_words + 1):
        step = model.step(last, state, memory)
        logits = model.head(step.hidden).float()  # (B, V)
        logits[:, PAD] = -torch.inf
        chosen = draw(logits).masked_fill(ended, PAD)
        scores = logits.log_softmax(-1).gather(-1, chosen[:, None]).squeeze(-1)
        last, state = chosen, step.state
        said.append(chosen)
        log_probs.append(scores.masked_fill(ended | (chosen == START), 0.0))
        looks.append(step.attention)
        ended = ended | (chosen == END)
        if ended.all():
            break
    return _without_start(torch.stack(said, 1), torch.stack(log_probs, 1), looks, max_words)


def _without_start(tokens: Tensor, log_probs: Tensor, looks: list[Tensor | None], max_words: int) -> Decoded:
    """Close the gaps that START leaves, in words, log-probabilities and attention alike."""
    silent = (tokens == START) | (tokens == PAD)  # (B, T)
    order = silent.int().argsort(dim=1, stable=True)[:, :max_words]
    kept = ~silent.gather(1, order)
    attention = None
    if looks[0] is not None:
        maps = torch.stack([look for look in looks if look is not None], 1)  # (B, T, R)
        attention = maps.gather(1, order[..., None].expand(-1, -1, maps.shape[-1])) * kept[..., None]
    return Decoded(tokens.gather(1, order) * kept, log_probs.gather(1, order) * kept, attention)
