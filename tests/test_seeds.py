"""Differences between settings, over seeds and images together, on data whose truth is known."""

import math

import numpy as np
import pytest

from captioning.metrics.bleu import count_bleu
from captioning.metrics.seeds import image_values, mean_interval, settings_test
from captioning.metrics.statistics import bleu_statistics, mean_statistics, randomization_test

STUDIES, IMAGES, SEEDS = 400, 200, 3


def draw(generator: np.random.Generator, effect: float, seed_sd: float, setting_sd: float, rest_sd: float):
    """Two settings of three runs each: scores of runs at images, as the model of the test has them."""
    image = generator.normal(0, 40, IMAGES)
    settings = []
    for shift in (effect, 0.0):
        runs = generator.normal(shift, seed_sd, (SEEDS, 1)) + generator.normal(0, setting_sd, IMAGES)
        settings.append(image + runs + generator.normal(0, rest_sd, (SEEDS, IMAGES)))
    return [[mean_statistics(run) for run in runs] for runs in settings]


@pytest.mark.parametrize(
    ("seed_sd", "setting_sd", "rest_sd"), [(3, 0, 10), (1, 5, 30), (2, 20, 30), (0, 20, 30), (0, 0, 30)]
)
def test_equal_settings_differ_in_at_most_a_twentieth_of_the_studies(
    seed_sd: float, setting_sd: float, rest_sd: float
) -> None:
    generator = np.random.default_rng(0)
    found = [
        settings_test(*draw(generator, 0.0, seed_sd, setting_sd, rest_sd)).p_value for _ in range(STUDIES)
    ]
    share = np.mean(np.array(found) < 0.05)
    assert share <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / STUDIES)


@pytest.mark.parametrize(("seed_sd", "setting_sd", "rest_sd"), [(3, 0, 10), (2, 20, 30)])
def test_the_interval_covers_the_true_difference(seed_sd: float, setting_sd: float, rest_sd: float) -> None:
    generator = np.random.default_rng(1)
    tests = [settings_test(*draw(generator, 7.0, seed_sd, setting_sd, rest_sd)) for _ in range(STUDIES)]
    covered = np.mean([test.low <= 7.0 <= test.high for test in tests])
    assert 0.93 <= covered <= 0.99
    assert abs(np.mean([test.difference for test in tests]) - 7.0) < 0.5


def test_a_real_difference_is_found() -> None:
    generator = np.random.default_rng(2)
    found = [settings_test(*draw(generator, 10.0, 1, 5, 30)).p_value for _ in range(100)]
    assert np.mean(np.array(found) < 0.05) > 0.8


def test_a_test_of_one_run_each_takes_seeds_for_settings() -> None:
    """Why the test over images alone does not answer the question."""
    generator, found = np.random.default_rng(3), []
    for _ in range(100):
        first, second = draw(generator, 0.0, 3, 0, 10)
        found.append(randomization_test(first[0], second[0], np.random.default_rng(0), 200).p_value)
    assert np.mean(np.array(found) < 0.05) > 0.3


def test_a_hand_computed_case() -> None:
    """Two runs of two images: variances 1 and 1 between runs, 1 between images, nothing left over."""
    first = [mean_statistics([1.0, 3.0]), mean_statistics([3.0, 5.0])]
    second = [mean_statistics([0.0, 0.0]), mean_statistics([2.0, 2.0])]
    test = settings_test(first, second)
    # Run means 2, 4 and 0, 2: var/2 = 1 each; image differences 1, 3: var/2 = 1; rest 0. Variance 3.
    assert test.difference == 2.0
    half = 3.182446 * math.sqrt(3)  # t of 3² / (1 + 1 + 1) = 3 degrees
    assert test.low == pytest.approx(2 - half) and test.high == pytest.approx(2 + half)


def test_image_values_of_a_mean_are_the_scores_and_of_bleu_average_to_it() -> None:
    values = np.random.default_rng(0).random(7)
    assert image_values(mean_statistics(values)) == pytest.approx(values)
    captions = [
        f"a {colour} dog runs on the {place}".split()
        for colour in ("red", "black")
        for place in ("grass", "beach", "road")
    ]
    references = [
        [f"a {colour} dog runs on a {place}".split()]
        for colour in ("red", "white")
        for place in ("grass", "beach", "road")
    ]
    statistics = bleu_statistics(count_bleu(captions, references), 4)
    corpus = statistics.corpus(statistics.per_image.sum(0))
    assert image_values(statistics).mean() == pytest.approx(corpus, abs=0.05)


def test_equal_runs_differ_by_nothing() -> None:
    runs = [mean_statistics([0.2, 0.4])] * 2
    assert settings_test(runs, runs) == (0.0, 0.0, 0.0, 1.0)


def test_too_few_runs_and_other_images_are_refused() -> None:
    one, other = mean_statistics([0.1, 0.2]), mean_statistics([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="needs two runs of each setting, not 1 and 2"):
        settings_test([one], [one, one])
    with pytest.raises(ValueError, match=r"runs need the same images, not \[2, 3\] of them"):
        settings_test([one, one], [one, other])
    with pytest.raises(ValueError, match="needs two images, not 1"):
        settings_test([mean_statistics([0.1])] * 2, [mean_statistics([0.2])] * 2)


def test_the_interval_of_a_mean_is_students() -> None:
    found = mean_interval([1.0, 2.0, 3.0])
    assert found is not None and found.score == 2.0
    assert found.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3))  # t of 2 degrees, standard deviation 1
    assert mean_interval([1.0]) is None
