"""Rules about which words may come next, and the checks of what a decoder is asked for.

A rule is called with the words so far (N, t) and the scores of the next word (N, V), and returns the scores
with what it forbids at -inf. Beam search applies rules to its candidates; the log-probabilities it returns
stay the model's. Required words are no rule: they decide which captions may end, and `beam` searches for
them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captioning.errors import InputError
from captioning.vocabulary import END, UNKNOWN

Rule = Callable[[Tensor, Tensor], Tensor]


class NoRepeatedNgram:
    """Forbids words that would complete an n-gram which the caption already has (Paulus et al. 2017).

    Args:
        size: n; 1 forbids any word twice, 3 is usual.
    """

    def __init__(self, *, size: int) -> None:
        if size < 1:
            raise InputError(f"an n-gram has at least 1 word, found size={size}")
        self.size = size

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        if tokens.shape[1] < self.size:
            return scores
        windows = tokens.unfold(1, self.size, 1)  # (N, t-n+1, n)
        last = tokens[:, tokens.shape[1] - self.size + 1 :]  # (N, n-1)
        repeats = (windows[..., :-1] == last[:, None]).all(-1)  # (N, t-n+1)
        # A word is forbidden where any earlier window with the same first n - 1 words ends in it.
        forbidden = torch.zeros_like(scores).scatter_add(1, windows[..., -1], repeats.to(scores.dtype)) > 0
        # Ending is never a repetition; END stands in the places of captions that have ended.
        forbidden[:, END] = False  # (N, V)
        return scores.masked_fill(forbidden, -torch.inf)


class Forbidden:
    """Forbids some words everywhere.

    Args:
        ids: of the words, see `Vocabulary.id`; by default the unknown word, which no reader wants to see.
    """

    def __init__(self, *, ids: Sequence[int] = (UNKNOWN,)) -> None:
        if any(index < 0 for index in ids):
            raise InputError(f"word ids start at 0, found {list(ids)}")
        self.ids = list(ids)

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        if max(self.ids, default=0) >= scores.shape[-1]:
            raise InputError(f"{max(self.ids)} can't be forbidden: the model has {scores.shape[-1]} words")
        return scores.index_fill(-1, torch.tensor(self.ids, device=scores.device), -torch.inf)


class MinimumLength:
    """Forbids END before the caption has `words` words."""

    def __init__(self, *, words: int) -> None:
        self.words = words

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        if tokens.shape[1] >= self.words:
            return scores
        return scores.index_fill(-1, torch.tensor([END], device=scores.device), -torch.inf)


def apply_rules(rules: Sequence[Rule], tokens: Tensor, scores: Tensor) -> Tensor:
    """Return the scores (N, V) of the next words after `tokens` (N, t), -inf at what a rule forbids."""
    for rule in rules:
        scores = rule(tokens, scores)
    return scores


def check_whole_numbers(**options: object) -> None:
    """Refuse decoder options, given by name, that are not whole numbers from 1.

    Raises:
        InputError: names the first one.
    """
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"decoding.{name} is {value!r}; needed is a whole number from 1")


def check_probabilities(**options: object) -> None:
    """Refuse decoder options, given by name, that are no probability above 0; None switches an option off.

    Raises:
        InputError: names the first one.
    """
    for name, value in options.items():
        if value is not None and not (isinstance(value, int | float) and 0 < value <= 1):
            raise InputError(f"decoding.{name} is {value!r}; needed is a share above 0, up to 1, or null")


def check_satisfiable(
    rules: Sequence[Rule], required: Sequence[int], prefix: Sequence[int], max_words: int
) -> None:
    """Refuse constraints that no caption of `max_words` words can meet together.

    Raises:
        InputError: names them.
    """
    forbidden = {word for rule in rules if isinstance(rule, Forbidden) for word in rule.ids}
    if both := sorted(forbidden & set(required)):
        raise InputError(f"word ids {both} are required and forbidden; drop them from one of the two")
    shortest = max((rule.words for rule in rules if isinstance(rule, MinimumLength)), default=0)
    num_given = len(prefix) + len({*required} - {*prefix})
    if max_words <= max(shortest, num_given) and (shortest or num_given):
        raise InputError(
            f"decoding.max_words={max_words}, the end counted, has no room for a minimum of {shortest} "
            f"words, or for the {num_given} of the prefix and the required ones; give a larger max_words"
        )


def required_bits(required: Sequence[int], size: int, device: torch.device) -> Tensor:
    """Return the bit of the requirement that each word meets: (V,) int64, zero for most words.

    Args:
        required: word ids.
        size: V.
        device: of the result.

    Raises:
        InputError: more than six words, one twice, or an id that is no word's.
    """
    # The search keeps a beam for each of the 2^n subsets of requirements: 64 with six.
    if len(required) > 6 or len(set(required)) < len(required):
        raise InputError(f"at most 6 different words can be required, found {list(required)}")
    bits = torch.zeros(size, dtype=torch.int64, device=device)
    for position, word in enumerate(required):
        if not END < word < size:
            raise InputError(
                f"word id {word} can't be required: ids of words run from {END + 1} to {size - 1}"
            )
        bits[word] = 1 << position
    return bits
