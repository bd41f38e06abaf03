"""Several tests at once: Holm's adjustment, and tests pooled over tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from qbench.stats.difference import LEVEL, Difference, student
from qbench.stats.shares import mcnemar


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: those up to 0.05 err, any of them, in 5 % of cases.

    Holm 1979, Scandinavian Journal of Statistics 6, 65.
    """
    count = len(p_values)
    order = sorted(range(count), key=lambda k: p_values[k])
    adjusted = [0.0] * count
    highest = 0.0
    for rank, k in enumerate(order):
        highest = max(highest, min(1.0, (count - rank) * p_values[k]))
        adjusted[k] = highest
    return adjusted


def pooled_mean(differences: Sequence[Difference], level: float = LEVEL) -> Difference:
    """The mean over tasks of their differences, every task counting alike.

    The tasks have different items, so their variances add up; the degrees of freedom are
    Satterthwaite's. ValueError without any.
    """
    if not differences:
        raise ValueError("there is no difference to pool")
    count = len(differences)
    variances = np.array([term.stderr**2 for term in differences])
    degrees = np.array([term.degrees for term in differences])
    total = float(variances.sum())
    spread = float((variances**2 / degrees).sum()) if math.isfinite(total) else math.inf
    return student(
        float(np.mean([term.value for term in differences])),
        math.sqrt(total) / count,
        total**2 / spread if 0 < spread < math.inf else math.inf,
        sum(term.items for term in differences),
        sum(term.clusters for term in differences),
        min(term.draws for term in differences),
        level,
    )


def pooled_mcnemar(flips: Sequence[tuple[int, int]], alternative: str = "two-sided") -> float:
    """Exact p-value of no difference in any task. flips: (gained, lost) of each.

    Under no difference a changed answer is as likely gained as lost in every task, so the tasks'
    counts add up.
    """
    gained = sum(term for term, _ in flips)
    lost = sum(other for _, other in flips)
    return mcnemar(gained, lost, alternative)
