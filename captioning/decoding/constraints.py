"""Rules about which words may come next; beam search applies them to the candidates, not to the model.

Each rule is an object called with the words so far (N, t) and the scores of the next word (N, V); it returns
the scores with what it forbids at -inf. `RequiredWords` is different: it says which captions may end, see
`beam`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from captioning.errors import InputError
from captioning.vocabulary import END, UNKNOWN

Rule = Callable[[Tensor, Tensor], Tensor]


class NoRepeatedNgram:
    """Forbids a word that would complete an n-gram the caption already has (Paulus et al. 2017).

    Args:
        size: n; 1 forbids any word twice, 3 is usual.
    """

    def __init__(self, *, size: int) -> None:
        if size < 1:
            raise InputError(f"an n-gram has at least 1 word, found size={size}")
        self.size = size

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """Apply the rule."""
        if tokens.shape[1] < self.size:
            return scores
        windows = tokens.unfold(1, self.size, 1)  # (N, t-n+1, n)
        last = tokens[:, tokens.shape[1] - self.size + 1 :]  # (N, n-1)
        again = (windows[..., :-1] == last[:, None]).all(-1)  # (N, t-n+1)
        forbidden = torch.zeros_like(scores).scatter_add(1, windows[..., -1], again.to(scores.dtype)) > 0
        forbidden[:, END] = False
        return scores.masked_fill(forbidden, -torch.inf)


class Forbidden:
    """Forbids some words everywhere; by default the unknown word, which no reader wants to see.

    Args:
        ids: of the words, see `Vocabulary.id`.
    """

    def __init__(self, *, ids: Sequence[int] = (UNKNOWN,)) -> None:
        self.ids = list(ids)

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """Apply the rule."""
        return scores.index_fill(-1, torch.tensor(self.ids, device=scores.device), -torch.inf)


class MinimumLength:
    """Forbids END before the caption has that many words.

    Args:
        words: at least.
    """

    def __init__(self, *, words: int) -> None:
        self.words = words

    def __call__(self, tokens: Tensor, scores: Tensor) -> Tensor:
        """Apply the rule."""
        if tokens.shape[1] >= self.words:
            return scores
        return scores.index_fill(-1, torch.tensor([END], device=scores.device), -torch.inf)


def required_bits(required: Sequence[int], size: int, device: torch.device) -> Tensor:
    """Give each word the bit of the requirement it meets: (V,) int64, zero for most.

    Raises:
        InputError: more than six words (the search keeps a beam for each of their 2^n subsets), or one twice.
    """
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
