"""Intervals and tests over training runs that differ in their seed only, and over images at the same time.

A difference between two systems is one of their settings only if other seeds and other images would show it
too. `settings_test` takes several runs of each setting, scored on the same images, as an analysis of variance
with two crossed random factors (Baayen, Davidson and Bates, 2008): the score of run r at image i is

    setting + run r + image i + setting × image i + rest                         (fractions)

Leaving out one run, or one image, at a time (the jackknife, Efron and Tibshirani, 1993) gives the variance of
the difference from each; what is left, `rest`, is in both and counts once. Few runs leave few degrees of
freedom (Satterthwaite, 1946), so interval and p-value come from Student's t. A bootstrap that draws three
seeds with replacement is no substitute: where seeds matter most it finds a difference between equal systems
in 16 of 100 studies instead of 5, and the test over the images of one run each in 76 (notebooks/LOG.md).

Legend: N runs, I images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtr, stdtrit

from captioning.metrics.statistics import Interval, Reals, SufficientStatistics


class SettingsDifference(NamedTuple):
    """First setting minus second, its confidence interval, and the two-sided p-value of no difference."""

    difference: float
    low: float
    high: float
    p_value: float


def mean_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Return the mean over runs with Student's t interval; None for fewer than two runs."""
    if len(values) < 2:
        return None
    mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
    half = stdtrit(len(values) - 1, (1 + level) / 2) * error
    return Interval(float(mean), float(mean - half), float(mean + half))


def settings_test(
    first: Sequence[SufficientStatistics], second: Sequence[SufficientStatistics], level: float = 0.95
) -> SettingsDifference:
    """Test whether two settings differ, over other seeds and other images.

    Args:
        first: of each run of the first setting; all runs were scored by the same metric on the same images.
        second: of each run of the second setting.
        level: of the interval.

    Raises:
        ValueError: A setting has fewer than two runs, or runs were scored on different numbers of images or
            on a single one.
    """
    if min(len(first), len(second)) < 2:
        raise ValueError(f"needs two runs of each setting, not {len(first)} and {len(second)}")
    if len(counts := {len(run.per_image) for run in (*first, *second)}) > 1:
        raise ValueError(f"runs need the same images, not {sorted(counts)} of them")
    if max(counts) < 2:
        raise ValueError(f"needs two images, not {max(counts)}")
    values = [np.stack([image_values(run) for run in setting]) for setting in (first, second)]  # (N, I)
    difference = float(values[0].mean() - values[1].mean())
    runs, rest = zip(*map(_variances, values), strict=True)
    images = (values[0].mean(0) - values[1].mean(0)).var(ddof=1) / values[0].shape[1]
    # Each part is a lower bound of the whole, which chance may push the sum below.
    variance = max(sum(runs) + images - sum(rest), sum(runs), images)
    if not variance > 0:  # all runs are equal at all images; NaN where SPICE gives no value
        return SettingsDifference(difference, difference, difference, 1.0 if difference == 0 else variance)
    parts = (*runs, images)
    freedom = [len(first) - 1, len(second) - 1, values[0].shape[1] - 1]
    degrees = variance**2 / sum(part**2 / free for part, free in zip(parts, freedom, strict=True))
    half = stdtrit(degrees, (1 + level) / 2) * variance**0.5
    p_value = 2 * stdtr(degrees, -abs(difference) / variance**0.5)
    return SettingsDifference(difference, difference - float(half), difference + float(half), float(p_value))


def image_values(statistics: SufficientStatistics) -> Reals:
    """Return each image's share (I,) in a corpus score, by leaving it out: the jackknife's pseudo-values.

    For a metric that is a mean over images these are the images' own scores.
    """
    count, sums = len(statistics.per_image), statistics.per_image.sum(0)
    # The others' sums as if there were as many images as before: a corpus score may divide by their number.
    without = (sums - statistics.per_image) * (count / (count - 1))  # (I, S)
    return count * statistics.corpus(sums) - (count - 1) * statistics.corpus(without)


def _variances(values: Reals) -> tuple[float, float]:
    """Return the variance of a setting's mean over runs (N, I): between runs, and of the rest."""
    count, images = values.shape
    means = values.mean(1)
    rest = values - means[:, None] - values.mean(0) + means.mean()
    return means.var(ddof=1) / count, (rest**2).sum() / ((count - 1) * (images - 1)) / (count * images)
