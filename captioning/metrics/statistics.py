"""How sure a corpus score is, and whether two systems really differ: resampling over images.

`bootstrap` (Efron and Tibshirani, 1993) draws as many images as there are, with replacement, many times over,
and takes percentiles of the scores of these corpora. `randomization_test` (Noreen, 1989; for translation
Riezler and Maxwell, 2005) swaps the two systems' outputs at random images and counts how often chance alone
makes a difference as large as found.

Both take per-image rows whose sum tells the corpus score, and the function from such sums to scores: the mean
of one column for CIDEr-D, ROUGE-L, SPICE (`mean_rows`); BLEU's counts and METEOR's statistics must be pooled
before dividing (`bleu_rows`, `meteor_rows`). CIDEr-D's document frequencies stay those of the whole corpus.
References, and training runs, are not resampled.

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


class Rows(NamedTuple):
    """Per-image rows (I, S), and the function that turns their sums (…, S) into corpus scores (…)."""

    values: Reals
    corpus: Callable[[Reals], Reals]


class Interval(NamedTuple):
    """A corpus score and the ends of its confidence interval."""

    score: float
    low: float
    high: float


class Difference(NamedTuple):
    """First system minus second, and how likely chance alone gives a difference this large (two-sided)."""

    difference: float
    p_value: float


def mean_rows(per_image: Sequence[float]) -> Rows:
    """Rows of a metric whose corpus score is the mean over images: CIDEr-D, ROUGE-L, SPICE; not METEOR."""
    values = np.asarray(per_image, np.float64)[:, None]
    return Rows(values, lambda sums: sums[..., 0] / len(values))


def bleu_rows(counts: BleuCounts, order: int) -> Rows:
    """Rows of BLEU-`order` (1..4) from `count_bleu`."""
    values = np.column_stack(counts).astype(np.float64)  # (I, 2N + 2)

    def corpus(sums: Reals) -> Reals:
        pooled = BleuCounts(
            sums[..., :NUM_ORDERS], sums[..., NUM_ORDERS : 2 * NUM_ORDERS], sums[..., -2], sums[..., -1]
        )
        return bleu_of_counts(pooled)[..., order - 1]

    return Rows(values, corpus)


def meteor_rows(statistics: Sequence[Sequence[float]]) -> Rows:
    """Rows of METEOR from what its program says of each image."""
    return Rows(np.asarray(statistics, np.float64), meteor_of_statistics)


def bootstrap(
    rows: Rows, generator: np.random.Generator, resamples: int = 1000, level: float = 0.95
) -> Interval:
    """The percentile interval that holds `level` of the resampled corpus scores.

    Raises:
        ValueError: There are fewer than two images, or `level` is not between 0 and 1.
    """
    num_images = len(rows.values)
    if num_images < 2 or not 0 < level < 1:
        raise ValueError(
            f"needs at least 2 images and a level in (0, 1), not {num_images} images and {level}"
        )
    scores = []
    for size in _chunks(resamples):
        drawn = (
            generator.integers(num_images, size=(size, num_images)) + np.arange(size)[:, None] * num_images
        )
        times = np.bincount(drawn.ravel(), minlength=size * num_images).reshape(size, num_images)
        scores.append(rows.corpus(times @ rows.values))
    low, high = np.quantile(np.concatenate(scores), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(rows.corpus(rows.values.sum(0))), float(low), float(high))


def randomization_test(
    first: Rows, second: Rows, generator: np.random.Generator, resamples: int = 1000
) -> Difference:
    """Compare two systems on the same images, in the same order, by the same metric.

    The p-value is (1 + number of shuffles at least as far apart) / (1 + resamples), so never 0.

    Raises:
        ValueError: The systems were scored on different numbers of images.
    """
    if first.values.shape != second.values.shape:
        raise ValueError(
            f"paired systems need the same images, not {len(first.values)} and {len(second.values)} of them"
        )
    change = second.values - first.values
    sums = first.values.sum(0), second.values.sum(0)
    found = float(first.corpus(sums[0]) - first.corpus(sums[1]))
    if np.isnan(found):  # SPICE gives no value for some captions: then nothing can be said
        return Difference(found, found)
    as_far = 0
    for size in _chunks(resamples):
        swapped = (generator.random((size, len(change))) < 0.5) @ change  # (R, S)
        shuffled = first.corpus(sums[0] + swapped) - first.corpus(sums[1] - swapped)
        as_far += int((np.abs(shuffled) >= abs(found) - 1e-12).sum())
    return Difference(found, (1 + as_far) / (1 + resamples))


def _chunks(total: int) -> list[int]:
    return [min(_CHUNK, total - start) for start in range(0, total, _CHUNK)]
