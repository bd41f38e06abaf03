"""The difference of two paired samples, with an interval and one-sided tests.

Everywhere a difference is candidate minus base, of the same items. `clusters` says which items
belong together (windows of one article, questions of one subject): they are not independent, and
the errors are those of clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from qbench.stats.clustered import (
    LEVEL,
    Floats,
    Labels,
    cluster_sums,
    clustered_variance,
    quantile,
)
from qbench.stats.shares import Flipped, score_bounds, score_statistic

LEAST_EFFECT = 0.5  # of clusters: less is chance, where few answers changed


@dataclass(frozen=True)
class Difference:
    """A difference with its interval.

    value, stderr: in the unit of the items. low, high: the interval at `level`. degrees: of
    freedom, infinite for a normal one. items, clusters, draws: what is behind it; `draws` are
    replicates of the quantization. flipped: of right and wrong answers, the effective counts that
    its interval and tests go by; None where they are Student's.
    """

    value: float
    stderr: float
    low: float
    high: float
    degrees: float
    items: int
    clusters: int
    draws: int = 1
    level: float = LEVEL
    flipped: Flipped | None = None

    @property
    def p_value(self) -> float:
        """Two-sided, of no difference."""
        return min(1.0, 2 * min(self.p_above(0.0), self.p_below(0.0)))

    def p_above(self, bound: float) -> float:
        """One-sided, of a difference that is at most `bound`: small where it is above."""
        return float(special.stdtr(self.degrees, -self._statistic(bound)))

    def p_below(self, bound: float) -> float:
        """One-sided, of a difference that is at least `bound`: small where it is below."""
        return float(special.stdtr(self.degrees, self._statistic(bound)))

    def _statistic(self, bound: float) -> float:
        """How many standard errors the difference is above `bound`."""
        if self.flipped is not None:
            return score_statistic(self.flipped, bound)
        distance = self.value - bound
        if self.stderr == 0:
            return math.copysign(math.inf, distance) if distance else 0.0
        return distance / self.stderr


def mean_interval(
    values: ArrayLike, clusters: Labels | None = None, level: float = LEVEL
) -> Difference:
    """The mean of values (float64, (items,)) with Student's interval over clusters.

    values: of a paired difference, candidate - base. clusters: a label for each item, None where
    every item is one. Variance CR2 and degrees of freedom of Bell and McCaffrey 2002 for a mean:
    with clusters of one item they are the plain ones, with equal clusters those of the clusters'
    means. A single cluster has an infinite interval. ValueError without items, or where the labels
    are more or fewer.
    """
    items = _finite(values)
    sums, sizes = cluster_sums(items - items.mean(), clusters)
    variance, degrees = clustered_variance(sums, sizes)
    return student(
        float(items.mean()), math.sqrt(variance), degrees, len(items), len(sizes), level=level
    )


def log_ratio(
    base: ArrayLike, candidate: ArrayLike, clusters: Labels | None = None, level: float = LEVEL
) -> Difference:
    """ln(mean of candidate / mean of base) of positive quantities, by the delta method.

    ValueError where a mean is not positive.
    """
    return mean_interval(log_ratio_items(base, candidate), clusters, level)


def log_ratio_items(base: ArrayLike, candidate: ArrayLike) -> Floats:
    """(items,) whose mean is the log ratio of the means, and whose spread is its error's.

    The log ratio plus each item's influence on it. ValueError where a mean is not positive.
    """
    first, second = _finite(base), _finite(candidate)
    _paired(first, second)
    if first.mean() <= 0 or second.mean() <= 0:
        raise ValueError(
            f"a ratio needs positive means, and they are {first.mean():g} and {second.mean():g}"
        )
    ratio = math.log(second.mean() / first.mean())
    return np.asarray(ratio + second / second.mean() - first / first.mean())


def share_difference(
    base: ArrayLike, candidate: ArrayLike, clusters: Labels | None = None, level: float = LEVEL
) -> Difference:
    """The difference of the shares of right answers (1 right, 0 wrong), with Tango's interval.

    base, candidate (float64 of 0 and 1, (items,)). With clusters of several items the counts are
    divided by the design effect, and the interval takes Student's quantile. So it ends
    within [-1, 1], and is not a point where no answer changed. ValueError for other values.
    """
    before, after = _finite(base), _finite(candidate)
    changes = _paired(before, after)
    if not np.isin(np.concatenate([before, after]), (0.0, 1.0)).all():
        raise ValueError("right and wrong answers are 1 and 0, and there are other values")
    n = len(changes)
    gained, lost = float((changes > 0).sum()), float((changes < 0).sum())
    sums, sizes = cluster_sums(changes - changes.mean(), clusters)
    variance, degrees = clustered_variance(sums, sizes)
    effect = 1.0
    if len(sizes) == n:
        degrees = math.inf
    elif len(sizes) == 1:  # there is no telling how alike its items are
        return Difference(float(changes.mean()), math.inf, -1.0, 1.0, 1.0, n, 1, 1, level)
    elif gained + lost:
        plain = (gained + lost - (gained - lost) ** 2 / n) / n / max(n - 1, 1)
        effect = max(LEAST_EFFECT, variance / plain) if plain else 1.0
    flipped = Flipped(gained / effect, lost / effect, n / effect)
    low, high = score_bounds(flipped, quantile(level, degrees))
    stderr = math.sqrt(max(gained + lost - (gained - lost) ** 2 / n, 0.0) * effect) / n
    return Difference(
        float(changes.mean()), stderr, low, high, degrees, n, len(sizes), 1, level, flipped
    )


def student(
    value: float,
    stderr: float,
    degrees: float,
    items: int,
    clusters: int,
    draws: int = 1,
    level: float = LEVEL,
) -> Difference:
    """A difference with Student's interval of `degrees` degrees of freedom."""
    reach = math.inf
    if math.isfinite(stderr) and degrees > 0:
        reach = quantile(level, degrees) * stderr
    return Difference(
        value,
        stderr,
        value - reach,
        value + reach,
        max(degrees, 1.0),
        items,
        clusters,
        draws,
        level,
    )


def _paired(base: ArrayLike, candidate: ArrayLike) -> Floats:
    first, second = _finite(base), _finite(candidate)
    if len(first) != len(second):
        raise ValueError(f"pairs need equal lengths, and they are {len(first)} and {len(second)}")
    return second - first


def _finite(values: ArrayLike) -> Floats:
    items = np.asarray(values, np.float64)
    if items.ndim != 1 or not len(items) or not np.isfinite(items).all():
        raise ValueError("a sample is a row of at least one finite number")
    return items
