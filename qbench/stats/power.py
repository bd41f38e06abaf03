"""What a comparison can see, and how many items or draws it takes to see more."""

from __future__ import annotations

import math

from scipy import optimize, stats

from qbench.stats.replicates import MeanSquares

ALPHA = 0.05
POWER = 0.8


def detectable(
    stderr: float, degrees: float = math.inf, alpha: float = ALPHA, power: float = POWER
) -> float:
    """The smallest difference that a two-sided test finds with this probability.

    stderr: of the difference, in whose unit the result is.
    """
    reach = stats.t.ppf(1 - alpha / 2, degrees) + stats.t.ppf(power, degrees)
    return float(reach * stderr)


def items_for_mean(
    spread: float, difference: float, alpha: float = ALPHA, power: float = POWER
) -> int:
    """Pairs that show a difference of this size. spread: standard deviation of one pair's."""
    reach = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    return math.ceil((reach * spread / abs(difference)) ** 2)


def items_for_share(
    discordance: float,
    difference: float,
    alpha: float = ALPHA,
    power: float = POWER,
    sided: int = 2,
) -> int:
    """Pairs of right and wrong answers that show a difference of this size by McNemar's test.

    discordance: the share of answers that differ, at least the difference. Connor 1987, Biometrics
    43, 207. ValueError for a difference of 0 or above the discordance.
    """
    if not 0 < abs(difference) <= discordance <= 1:
        raise ValueError(
            f"a difference of {difference} needs a discordance from {abs(difference)} to 1, "
            f"and it is {discordance}; neither may be 0"
        )
    null = stats.norm.ppf(1 - alpha / sided) * math.sqrt(discordance)
    other = stats.norm.ppf(power) * math.sqrt(discordance - difference**2)
    return math.ceil(((null + other) / difference) ** 2)


def detectable_share(
    items: int, discordance: float, alpha: float = ALPHA, power: float = POWER, sided: int = 2
) -> float | None:
    """The smallest difference of shares that McNemar's test finds; None where it finds none."""

    def missing(difference: float) -> float:
        return items_for_share(discordance, difference, alpha, power, sided) - items

    if missing(discordance) > 0:
        return None
    return float(optimize.brentq(missing, 1e-6, discordance, xtol=1e-6))


def items_to_pass(stderr: float, items: int, margin: float) -> int:
    """Items in all that show with POWER that nothing is worse by `margin`, where nothing is.

    stderr: of the difference on `items` items.
    """
    aim = margin / (stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER))
    return max(items, math.ceil(items * (stderr / aim) ** 2))


def draws_to_pass(squares: MeanSquares, margin: float, most: int = 1000) -> int | None:
    """Draws in all, on the same items, that show it; None where more items are needed first."""
    of_cell = squares.cell
    # Components of the variance of the mean: of draws, of clusters, and of both together.
    of_draw = max(squares.draw - of_cell, 0.0) / squares.clusters
    of_cluster = max(squares.cluster - of_cell, 0.0) / squares.draws
    for draws in range(squares.draws, most + 1):
        variance = (of_draw + of_cell / squares.clusters) / draws + of_cluster / squares.clusters
        degrees = max(draws - 1, 1)
        reach = stats.t.ppf(1 - ALPHA / 2, degrees) + stats.t.ppf(POWER, degrees)
        if reach * math.sqrt(variance) <= margin:
            return draws
    return None
