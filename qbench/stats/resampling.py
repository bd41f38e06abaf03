"""Tests and intervals by resampling: they ask nothing of the distribution of differences."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import ArrayLike

from qbench.stats.difference import LEVEL, Floats, Labels, cluster_sums

EXACT = 14  # clusters, up to which all 2^clusters signs are tried
DRAWS = 9999


def permutation_p(
    differences: ArrayLike, clusters: Labels | None = None, seed: int = 0, draws: int = DRAWS
) -> float:
    """Two-sided p-value of no difference: base and candidate swapped, cluster by cluster.

    differences (float64, (items,)): candidate - base. All swaps are tried up to EXACT clusters,
    else `draws` random ones, among which the observed one counts (Phipson and Smyth 2010,
    arXiv:1603.05766). On right and wrong answers it is McNemar's exact test.
    """
    items = np.asarray(differences, np.float64)
    sums, _ = cluster_sums(items, clusters)
    sums = sums[sums != 0]
    observed = abs(sums.sum())
    # Sums that are equal but for rounding count as equal.
    least = observed - 1e-12 * np.abs(sums).sum()
    if len(sums) <= EXACT:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=len(sums))))
        return float((np.abs(signs @ sums) >= least).mean())
    generator = np.random.default_rng(seed)
    signs = generator.integers(0, 2, (draws, len(sums)), np.int8) * 2 - 1
    return float((1 + (np.abs(signs @ sums) >= least).sum()) / (draws + 1))


def bootstrap_interval(
    values: ArrayLike,
    clusters: Labels | None = None,
    level: float = LEVEL,
    seed: int = 0,
    draws: int = DRAWS,
) -> tuple[float, float]:
    """The bootstrap-t interval of a mean over items, whole clusters drawn again.

    It follows skewed differences, where Student's interval is symmetric. Efron and Tibshirani 1993,
    An Introduction to the Bootstrap, section 12.5. Infinite for a single cluster.
    """
    items = np.asarray(values, np.float64)
    mean = float(items.mean())
    sums, sizes = cluster_sums(items, clusters)
    groups = len(sums)
    if groups < 2:
        return -math.inf, math.inf
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, groups, (draws, groups))
    totals = sizes[chosen].sum(axis=1)
    means = sums[chosen].sum(axis=1) / totals
    errors = _error(sums[chosen] - means[:, None] * sizes[chosen], totals)
    plain = float(_error(sums - mean * sizes, sizes.sum()))
    varied = errors > 0
    if plain == 0 or not varied.any():
        return mean, mean
    scores = (means[varied] - mean) / errors[varied]
    low, high = np.quantile(scores, (0.5 - level / 2, 0.5 + level / 2))
    return mean - float(high) * plain, mean - float(low) * plain


def _error(distances: Floats, items: Floats) -> Floats:
    """Standard error of means from the clusters' sums of distances, along the last axis."""
    groups = distances.shape[-1]
    return np.asarray(np.sqrt((distances**2).sum(axis=-1) * groups / (groups - 1)) / items)
