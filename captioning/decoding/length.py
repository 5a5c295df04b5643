"""How the log-probability of a whole caption becomes its score: functions (log_prob, words) -> score.

All of them rise with the length for the same log-probability, which `beam` uses to know when to stop.
"""

import math

from torch import Tensor

from captioning.errors import InputError


def total(log_prob: Tensor, words: Tensor) -> Tensor:
    """Take the log-probability itself; short captions win."""
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
