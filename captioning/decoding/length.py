"""How the log-probability of a whole caption becomes its score: functions (log_prob, words) -> score.

All of them rise with the length for the same log-probability, which `beam` uses to know when to stop.
"""

from torch import Tensor


def total(log_prob: Tensor, words: Tensor) -> Tensor:
    """Take the log-probability itself; short captions win."""
    return log_prob


def average(log_prob: Tensor, words: Tensor) -> Tensor:
    """Divide by the number of words, END included."""
    return log_prob / words


def gnmt(log_prob: Tensor, words: Tensor, *, alpha: float) -> Tensor:
    """Divide by ((5 + words) / 6)^alpha (Wu et al. 2016, equation 14); alpha 0 is `total`."""
    return log_prob / ((5 + words) / 6) ** alpha
