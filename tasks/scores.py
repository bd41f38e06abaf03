"""From the values of items to a score: mean, standard error, interval, and what is odd about it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

from qbench.errors import MethodError
from qbench.records import Score

Z_95 = 1.959964  # of the normal distribution, two-sided


def mean_score(
    task: str,
    metric: str,
    values: Sequence[float],
    *,
    higher: bool,
    filter: str = "none",
    clusters: Sequence[Hashable] | None = None,
    chance: float | None = None,
) -> Score:
    """The mean with its standard error; MethodError where a value is not finite.

    clusters: of each value, where some are of one article or subject. chance: where the values are
    1 for a right answer and 0 for a wrong one, the share that guessing gets right; then the score
    has a 95 % interval, and no standard error where all answers are right or all are wrong.
    """
    bad = sum(not math.isfinite(value) for value in values)
    if bad:
        raise MethodError(
            f"{task}: {metric} is not finite on {bad} of {len(values)} items; "
            "the quantized model gives NaN or infinity"
        )
    mean = math.fsum(values) / len(values)
    stderr = standard_error(values, clusters)
    score = Score(
        task=task,
        metric=metric,
        filter=filter,
        value=mean,
        stderr=stderr,
        n=len(values),
        higher_is_better=higher,
        suspicion=_suspicion(values),
    )
    if chance is None:
        return score
    low, high = wilson(mean, _independent(mean, stderr, len(values)))
    changes: dict[str, Any] = {"low": low, "high": high, "stderr": stderr or None}
    if low <= chance:
        changes["suspicion"] = (
            f"at the floor: {100 * mean:.3g} % right of {len(values)}, {100 * low:.3g} to "
            f"{100 * high:.3g} % at 95 %, is not above the {100 * chance:.3g} % of guessing"
        )
    return score.model_copy(update=changes)


def standard_error(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> float | None:
    """Of the mean: sqrt(C / (C - 1) * sum over C clusters of (sum of deviations)^2) / n.

    Without clusters each value is one, and this is sqrt(variance / n). None with less than two.
    Liang and Zeger 1986, Longitudinal data analysis using generalized linear models.
    """
    names = range(len(values)) if clusters is None else clusters
    mean = math.fsum(values) / len(values)
    sums: dict[Hashable, float] = {}
    for name, value in zip(names, values, strict=True):
        sums[name] = sums.get(name, 0.0) + value - mean
    count = len(sums)
    if count < 2:
        return None
    squares = math.fsum(total**2 for total in sums.values())
    return math.sqrt(count / (count - 1) * squares) / len(values)


def wilson(share: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share of n answers.

    Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    square = Z_95**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    spread = Z_95 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n**2))
    return max(0.0, middle - spread), min(1.0, middle + spread)


def _independent(share: float, stderr: float | None, n: int) -> float:
    """How many independent answers say as much as n: less where those of a cluster are alike."""
    if not stderr:
        return n
    return min(n, share * (1 - share) / stderr**2 + 1)


def _suspicion(values: Sequence[float]) -> str | None:
    """What is odd about the values of the items: a measure that is the same on all of them.

    Right or wrong, 1 or 0, may well be so, and so may a divergence of 0.
    """
    if len(values) > 1 and values[0] not in (0.0, 1.0) and len(set(values)) == 1:
        return f"the same value on all {len(values)} items"
    return None


def perplexity_score(nll: Score) -> Score:
    """exp of a mean negative log-likelihood; its standard error by the delta method.

    Raises MethodError where the exponential overflows.
    """
    if nll.value > 700:
        raise MethodError(
            f"{nll.task}: exp of the mean nll {nll.value:.4g} overflows; "
            "the quantized model is broken"
        )
    value = math.exp(nll.value)
    stderr = None if nll.stderr is None else value * nll.stderr  # d exp(m) = exp(m) dm
    changes = {"metric": "perplexity", "value": value, "stderr": stderr, "higher_is_better": False}
    return nll.model_copy(update=changes)
