"""Length scores (length penalties): functions (log-probability of a caption, number of words) -> its score.

With the number of words, every score rises for the same log-probability: beam search relies on it to know
when to stop.
"""

import math

from torch import Tensor

from captioning.errors import InputError


def total(log_prob: Tensor, words: Tensor) -> Tensor:
    """Return the log-probability itself; it favours short captions."""
    return log_prob


def average(log_prob: Tensor, words: Tensor) -> Tensor:
    """Divide by the number of words, END included."""
    return log_prob / words


def gnmt(log_prob: Tensor, words: Tensor, *, alpha: float) -> Tensor:
    """Divide by ((5 + words) / 6)^alpha (Wu et al. 2016, equation 14); alpha 0 is `total`.

    Raises:
        InputError: an alpha that is negative, for which the search would stop too early, or no number.
    """
    if not isinstance(alpha, int | float) or not 0 <= alpha < math.inf:
        raise InputError(f"decoding.length_score.alpha is {alpha}; needed is a number from 0")
    return log_prob / ((5 + words) / 6) ** alpha
