"""What a comparison can see, and how many items or draws it takes to see more."""

from __future__ import annotations

import math

from scipy import special

from qbench.stats.replicates import MeanSquares

ALPHA = 0.05
POWER = 0.8


def detectable(
    stderr: float, degrees: float = math.inf, alpha: float = ALPHA, power: float = POWER
) -> float:
    """The smallest difference that a two-sided test finds with this probability.

    stderr: of the difference, in whose unit the result is.
    """
    reach = special.stdtrit(degrees, 1 - alpha / 2) + special.stdtrit(degrees, power)
    return float(reach * stderr)


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
    null = special.ndtri(1 - alpha / sided) * math.sqrt(discordance)
    other = special.ndtri(power) * math.sqrt(discordance - difference**2)
    return math.ceil(((null + other) / difference) ** 2)


def items_to_pass(stderr: float, items: int, margin: float) -> int:
    """Items in all that show with POWER that nothing is worse by `margin`, where nothing is.

    stderr: of the difference on `items` items.
    """
    aim = margin / (special.ndtri(1 - ALPHA / 2) + special.ndtri(POWER))
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
        reach = special.stdtrit(degrees, 1 - ALPHA / 2) + special.stdtrit(degrees, POWER)
        if reach * math.sqrt(variance) <= margin:
            return draws
    return None
