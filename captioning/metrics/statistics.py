"""Confidence intervals of corpus scores, and tests whether two systems differ: resampling over images.

`bootstrap` (Efron and Tibshirani, 1993) draws as many images as there are, with replacement, many times over,
and takes percentiles of the scores of these corpora. `randomization_test` (Noreen, 1989; for translation
Riezler and Maxwell, 2005) swaps the two systems' outputs at random images and counts how often chance alone
makes a difference as large as found.

Both take a metric's sufficient statistics: numbers for each image from whose sums the corpus score follows.
For CIDEr-D, ROUGE-L and SPICE they are the scores themselves (`mean_statistics`); BLEU's and METEOR's counts
must be pooled before dividing (`bleu_statistics`, `meteor_statistics`). CIDEr-D's document frequencies stay
those of the whole corpus. References and training runs are not resampled.

Legend: I images, S columns, R resamples.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from captioning.metrics.bleu import NUM_ORDERS, BleuCounts, bleu_of_counts
from captioning.metrics.meteor import meteor_of_statistics

Reals = NDArray[np.float64]

_CHUNK = 100  # resamples at once: 5,000 images then take 4 MB


class SufficientStatistics(NamedTuple):
    """Statistics of each image (I, S), and the function from their sums (…, S) to corpus scores (…)."""

    per_image: Reals
    corpus: Callable[[Reals], Reals]


class Interval(NamedTuple):
    """A corpus score and the ends of its confidence interval."""

    score: float
    low: float
    high: float


class Difference(NamedTuple):
    """First system minus second, and the two-sided p-value of a difference this large."""

    difference: float
    p_value: float


def mean_statistics(per_image: Sequence[float]) -> SufficientStatistics:
    """For a metric whose corpus score is the mean over images: CIDEr-D, ROUGE-L, SPICE; not METEOR."""
    values = np.asarray(per_image, np.float64)[:, None]  # (I, 1)
    return SufficientStatistics(values, lambda sums: sums[..., 0] / len(values))


def bleu_statistics(counts: BleuCounts, order: int) -> SufficientStatistics:
    """For BLEU-`order` (1..4), from `count_bleu`."""
    values = np.column_stack(counts).astype(np.float64)  # (I, 2N + 2)

    def corpus(sums: Reals) -> Reals:
        pooled = BleuCounts(
            sums[..., :NUM_ORDERS], sums[..., NUM_ORDERS : 2 * NUM_ORDERS], sums[..., -2], sums[..., -1]
        )
        return bleu_of_counts(pooled)[..., order - 1]

    return SufficientStatistics(values, corpus)


def meteor_statistics(statistics: Sequence[Sequence[float]]) -> SufficientStatistics:
    """For METEOR, from `Score.statistics`."""
    return SufficientStatistics(np.asarray(statistics, np.float64), meteor_of_statistics)


def bootstrap(
    statistics: SufficientStatistics,
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Return the percentile interval that contains `level` of the resampled corpus scores.

    Raises:
        ValueError: There are fewer than two images, or `level` is not between 0 and 1.
    """
    num_images = len(statistics.per_image)
    if num_images < 2 or not 0 < level < 1:
        raise ValueError(
            f"needs at least 2 images and a level in (0, 1), not {num_images} images and {level}"
        )
    scores = []
    for size in _chunks(resamples):
        drawn = (
            generator.integers(num_images, size=(size, num_images)) + np.arange(size)[:, None] * num_images
        )
        # How often each image is drawn; the product with the statistics is their sum over the drawn images.
        times = np.bincount(drawn.ravel(), minlength=size * num_images).reshape(size, num_images)  # (R, I)
        scores.append(statistics.corpus(times @ statistics.per_image))
    low, high = np.quantile(np.concatenate(scores), [(1 - level) / 2, (1 + level) / 2])
    score = float(statistics.corpus(statistics.per_image.sum(0)))
    return Interval(score, float(low), float(high))


def randomization_test(
    first: SufficientStatistics,
    second: SufficientStatistics,
    generator: np.random.Generator,
    resamples: int = 1000,
) -> Difference:
    """Test whether two systems differ, by approximate randomization.

    Both were scored by the same metric on the same images, in the same order. The p-value is (1 + number of
    shuffles with at least this difference) / (1 + resamples), so never 0.

    Raises:
        ValueError: The systems were scored on different numbers of images.
    """
    if first.per_image.shape != second.per_image.shape:
        raise ValueError(
            f"paired systems need the same images, not {len(first.per_image)} and {len(second.per_image)} "
            "of them"
        )
    change = second.per_image - first.per_image  # (I, S)
    sums = first.per_image.sum(0), second.per_image.sum(0)
    found = float(first.corpus(sums[0]) - first.corpus(sums[1]))
    if np.isnan(found):  # SPICE gives no value for some captions
        return Difference(found, found)
    as_far = 0
    for size in _chunks(resamples):
        # What swapping random images adds to the first system's sums, and takes from the second's.
        swapped = (generator.random((size, len(change))) < 0.5) @ change  # (R, S)
        shuffled = first.corpus(sums[0] + swapped) - first.corpus(sums[1] - swapped)
        # Equal differences count, whatever rounding did to them.
        as_far += int((np.abs(shuffled) >= abs(found) - 1e-12).sum())
    return Difference(found, (1 + as_far) / (1 + resamples))


def _chunks(total: int) -> list[int]:
    return [min(_CHUNK, total - start) for start in range(0, total, _CHUNK)]
