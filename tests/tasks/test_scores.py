"""Standard errors and intervals against plain formulas, published values and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from qbench.stats.difference import mean_interval
from qbench.stats.shares import wilson
from qbench.tasks.scores import mean_score


def standard_error(values, clusters=None):
    return mean_score("t", "m", values, higher=False, clusters=clusters).stderr


@pytest.mark.parametrize(("right", "n"), [(0, 2), (0, 57), (3, 40), (20, 40), (57, 57), (1, 1)])
def test_wilson_is_scipys(right, n):
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_wilson_of_none_or_all_ends_there():
    for n in range(1, 300):
        assert wilson(0.0, n)[0] == 0.0 and wilson(1.0, n)[1] == 1.0


def test_nothing_right_has_an_interval_and_no_error_of_zero():
    score = mean_score("t", "acc", [0.0] * 20, higher=True, chance=0.25)
    assert (score.value, score.stderr, score.low) == (0.0, None, 0.0)
    assert score.high == pytest.approx(0.1611, abs=1e-4)
    assert score.suspicion == (
        "at the floor: 0 % right of 20, 0 to 16.1 % at 95 %, is not above the 25 % of guessing"
    )
    score = mean_score("t", "acc", [1.0] * 20, higher=True, chance=0.25)
    assert (score.stderr, score.high, score.suspicion) == (None, 1.0, None)


def test_a_measure_is_no_share():
    score = mean_score("t", "kl_mean", [0.0, 0.0], higher=False)
    assert (score.stderr, score.low, score.high) == (0.0, None, None)


def test_clusters_of_one_are_items():
    values = np.random.default_rng(0).normal(size=30).tolist()
    plain = float(np.std(values, ddof=1)) / math.sqrt(30)
    assert standard_error(values) == pytest.approx(plain)
    assert standard_error(values, list(range(30))) == pytest.approx(plain)


def test_an_item_that_is_told_k_times_is_one_item():
    values = np.random.default_rng(0).normal(size=30)
    clusters = np.repeat(np.arange(30), 4).tolist()
    repeated = np.repeat(values, 4).tolist()
    assert standard_error(repeated, clusters) == pytest.approx(standard_error(values.tolist()))
    assert standard_error(repeated) < 0.6 * standard_error(values.tolist())
    right = np.repeat(values > 0, 4).astype(float).tolist()
    share = mean_score("t", "acc", right, higher=True, clusters=clusters, chance=0.25)
    # Korn and Graubard: fewer independent answers by (z / t)^2, of 29 degrees of freedom.
    worth = 30 * (1.959964 / 2.045230) ** 2
    assert (share.low, share.high) == pytest.approx(wilson(share.value, worth))
    assert share.degrees == pytest.approx(29)


def test_one_cluster_says_nothing_about_its_error():
    assert standard_error([1.0, 2.0, 3.0], ["a"] * 3) is None
    assert standard_error([1.0]) is None
    right = [1.0] * 90 + [0.0] * 10
    share = mean_score("t", "acc", right, higher=True, clusters=["a"] * 100, chance=0.25)
    assert (share.low, share.high, share.stderr, share.degrees) == (0.0, 1.0, None, None)
    assert share.suspicion is not None and share.suspicion.startswith("of a single cluster: ")
    alone = mean_score("t", "acc", [1.0], higher=True, clusters=["a"], chance=0.25)
    assert (alone.low, alone.high) == pytest.approx(wilson(1.0, 1))


def test_a_score_alone_has_the_error_of_a_difference():
    """CR2 and the degrees of freedom of Bell and McCaffrey, where an article is a long one."""
    values = np.random.default_rng(2).normal(size=16).tolist()
    clusters = [0] * 11 + [1, 1, 2, 2, 3]
    score = mean_score("t", "nll", values, higher=False, clusters=clusters)
    expected = mean_interval(values, clusters)
    assert (score.stderr, score.degrees) == pytest.approx((expected.stderr, expected.degrees))
    assert mean_score("t", "nll", values, higher=False).degrees == pytest.approx(15)


@pytest.mark.parametrize("sizes", [(50, 50, 50), (120, 10, 10, 10, 5, 5)])
def test_answers_of_few_unequal_clusters_are_covered_and_guessers_are_at_the_floor(sizes):
    rng = np.random.default_rng(3)
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    covered = above = 0
    for _ in range(300):
        right = rng.random(len(clusters)) < rng.beta(2, 6, len(sizes))[clusters]
        score = mean_score(
            "t", "acc", right.astype(float), higher=True, clusters=clusters.tolist(), chance=0.25
        )
        covered += score.low <= 0.25 <= score.high
        above += score.suspicion is None
    assert covered >= 0.93 * 300 and above <= 0.05 * 300


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_clustered_errors_cover_what_they_promise(spread):
    """Articles with an effect of their own; by windows 85 % would be covered, not 95 %."""
    rng = np.random.default_rng(1)
    covered = 0
    clusters = np.repeat(np.arange(40), 3)
    for _ in range(400):
        values = rng.normal(size=120) + spread * rng.normal(size=40)[clusters]
        error = standard_error(values.tolist(), clusters.tolist())
        assert error is not None
        covered += abs(values.mean()) < 2.0227 * error  # Student's t of 39 degrees of freedom
    assert 0.92 < covered / 400 < 0.98
