"""From the values of items to a score: mean, standard error, interval, and suspicion."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from qbench.errors import MethodError
from qbench.records import Score
from qbench.stats.clustered import LEVEL, cluster_sums, clustered_variance, quantile
from qbench.stats.shares import Z_95, wilson


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

    clusters: the cluster of each value, such as its article or subject. The error is that of
    `clustered_variance`, with its degrees of freedom; a single cluster has none. chance: where the
    values are 1 for a right answer and 0 for a wrong one, the share that guessing gets right. Then
    the score has a 95 % interval, and no standard error where all answers are right or all wrong.
    """
    bad = sum(not math.isfinite(value) for value in values)
    if bad:
        raise MethodError(
            f"{task}: {metric} is not finite on {bad} of {len(values)} items; "
            "the quantized model gives NaN or infinity"
        )
    mean = math.fsum(values) / len(values)
    sums, sizes = cluster_sums(np.asarray(values, np.float64) - mean, clusters)
    variance, degrees = clustered_variance(sums, sizes)
    known = math.isfinite(variance)
    score = Score(
        task=task,
        metric=metric,
        filter=filter,
        value=mean,
        stderr=math.sqrt(variance) if known else None,
        degrees=degrees if known else None,
        n=len(values),
        higher_is_better=higher,
        suspicion=_suspicion(values),
    )
    return score if chance is None else _of_answers(score, chance, len(sizes))


def _of_answers(score: Score, chance: float, clusters: int) -> Score:
    """A share of right answers, with its interval, and with a suspicion where there is one."""
    low, high = wilson(score.value, _independent(score, clusters))
    changes: dict[str, Any] = {"low": low, "high": high, "stderr": score.stderr or None}
    if clusters == 1 < score.n:
        changes["suspicion"] = (
            f"of a single cluster: its {score.n} items tell nothing of others, and no interval is "
            "narrower than 0 to 100 %"
        )
    elif low <= chance:
        changes["suspicion"] = (
            f"at the floor: {100 * score.value:.3g} % right of {score.n}, {100 * low:.3g} to "
            f"{100 * high:.3g} % at 95 %, is not above the {100 * chance:.3g} % of guessing"
        )
    return score.model_copy(update=changes)


def _independent(score: Score, clusters: int) -> float:
    """How many independent answers would be as informative as the score's n answers in clusters.

    p (1 - p) / stderr^2, which is smaller than n where the answers of a cluster are alike; times
    (z / t)^2, since the error has few degrees of freedom; 0 for a single cluster. Korn and Graubard
    1998, Survey Methodology 24, 193.
    """
    if clusters == score.n:
        return score.n
    if score.stderr is None or score.degrees is None:
        return 0.0
    alike = float(score.n)
    if score.stderr:
        alike = min(alike, score.value * (1 - score.value) / score.stderr**2 + 1)
    return alike * (Z_95 / quantile(LEVEL, score.degrees)) ** 2


def _suspicion(values: Sequence[float]) -> str | None:
    """A sentence where all items have the same value, unless that is 0 or 1; else None.

    Answers may all be right or all be wrong, and all divergences may be 0.
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
