"""The mean of items in clusters: its variance, degrees of freedom and Student's quantile.

What tasks store of a score and what comparisons say of a difference go by these.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Labels = Sequence[object]
LEVEL = 0.95


def cluster_sums(values: Floats, clusters: Labels | None) -> tuple[Floats, Floats]:
    """(sums, sizes), each (clusters,), of values (items,); each item is one without labels.

    ValueError where there are more or fewer labels than values.
    """
    if clusters is None:
        return values, np.ones_like(values)
    if len(clusters) != len(values):
        raise ValueError(f"{len(clusters)} labels of clusters for {len(values)} items")
    index = cluster_index(clusters)
    return np.bincount(index, values).astype(np.float64), np.bincount(index).astype(np.float64)


def cluster_index(clusters: Labels) -> NDArray[np.int64]:
    """(items,) int64: the number of each item's cluster, in the order in which they appear."""
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in clusters], np.int64)


def clustered_variance(sums: Floats, sizes: Floats) -> tuple[float, float]:
    """Variance of the mean and its degrees of freedom; infinite and 0 for a single cluster.

    sums (clusters,): of the items' distances from the mean. sizes (clusters,): how many items. The
    leverage of a cluster is its share h of the items; CR2 divides the square of its sum by 1 - h.
    Bell and McCaffrey 2002, Survey Methodology 28, 169, for a mean.
    """
    n = sizes.sum()
    if len(sizes) < 2:
        return np.inf, 0.0
    weights = 1 / (1 - sizes / n)
    variance = float((weights * sums**2).sum() / n**2)
    # Of the quadratic form, were all items independent and alike: (trace)^2 / trace of the square.
    off = weights * sizes**2 / n
    degrees = n**2 / ((sizes**2).sum() + off.sum() ** 2 - (off**2).sum())
    return variance, float(degrees)


@lru_cache(maxsize=4096)  # cells of one task ask for the same
def quantile(level: float, degrees: float) -> float:
    """Of Student's distribution: how many standard errors an interval of this level reaches."""
    return float(special.stdtrit(degrees, 0.5 + level / 2))
