"""Right and wrong answers to the same questions: exact McNemar, Tango's score, Wilson's interval.

Of n items, `gained` became right and `lost` became wrong; the others say nothing about a difference
of the two shares. Counts may be fractions, as those of clusters are after division by their design
effect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special

Z_95 = 1.959964  # of the normal distribution, two-sided
EDGE = 1e-9  # from -1 and 1, where the score has no variance


@dataclass(frozen=True)
class Flipped:
    """How many of `items` became right and wrong."""

    gained: float
    lost: float
    items: float

    @property
    def value(self) -> float:
        """The difference of the shares, candidate minus base."""
        return (self.gained - self.lost) / self.items


def mcnemar(gained: int, lost: int, alternative: str = "two-sided") -> float:
    """The exact p-value of no difference, which is a sign test of the answers that changed.

    alternative: `two-sided`, `greater` (more gained than lost) or `less`. McNemar 1947,
    Psychometrika 12, 153; 1 where nothing changed.
    """
    if gained + lost == 0:
        return 1.0
    changed = gained + lost
    less = special.bdtr(gained, changed, 0.5)
    greater = special.bdtr(lost, changed, 0.5)  # the sign test is symmetric
    if alternative == "two-sided":
        return float(min(1.0, 2 * min(less, greater)))
    return float(less if alternative == "less" else greater)


def score_statistic(flipped: Flipped, difference: float) -> float:
    """How many standard errors the observed difference is above `difference`, in (-1, 1).

    The error is that of the null hypothesis: the likeliest shares with this difference. Tango 1998,
    Statistics in Medicine 17, 891, equations (6) to (8).
    """
    n, gained, lost = flipped.items, flipped.gained, flipped.lost
    # The share that became wrong, q, is the larger root of 2n q^2 + linear q + constant.
    linear = -gained - lost + (2 * n - gained + lost) * difference
    constant = -lost * difference * (1 - difference)
    root = math.sqrt(max(linear**2 - 8 * n * constant, 0.0))
    q = (root - linear) / (4 * n)
    variance = n * (2 * q + difference * (1 - difference))
    distance = gained - lost - n * difference
    if variance <= 0:
        return math.copysign(math.inf, distance) if distance else 0.0
    return distance / math.sqrt(variance)


def score_bounds(flipped: Flipped, reach: float) -> tuple[float, float]:
    """The differences from which the observed one is `reach` standard errors away."""

    from scipy.optimize import brentq  # importing it takes twice as long as all else here

    def bound(end: float, aim: float) -> float:
        if abs(score_statistic(flipped, end)) <= reach:
            return math.copysign(1.0, end)
        reached = brentq(lambda d: score_statistic(flipped, d) - aim, end, flipped.value)
        return float(reached)

    return bound(-1 + EDGE, reach), bound(1 - EDGE, -reach)


def wilson(share: float, n: float) -> tuple[float, float]:
    """The 95 % interval of a share of n answers, never a point; 0 to 1 of none.

    Wilson 1927, Journal of the American Statistical Association 22, 209.
    """
    square = Z_95**2
    middle = (share * n + square / 2) / (n + square)
    spread = Z_95 / (n + square) * math.sqrt(share * (1 - share) * n + square / 4)
    # Rounding leaves ends at 0 and 1 a little inside.
    low = 0.0 if share == 0 else max(0.0, middle - spread)
    high = 1.0 if share == 1 else min(1.0, middle + spread)
    return low, high
