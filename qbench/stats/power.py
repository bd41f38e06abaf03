"""What a comparison can see, and how many items or draws it takes to see more."""

from __future__ import annotations

import math
from collections.abc import Callable

from scipy import special

from qbench.stats.replicates import MeanSquares

ALPHA = 0.05
POWER = 0.8
MOST = 1000  # draws, or times as many items as there are: what is worth naming


def detectable(stderr: float, degrees: float = math.inf, alpha: float = ALPHA) -> float:
    """The smallest difference that a two-sided test finds with the probability POWER.

    stderr: of the difference, in whose unit the result is.
    """
    reach = special.stdtrit(degrees, 1 - alpha / 2) + special.stdtrit(degrees, POWER)
    return float(reach * stderr)


def items_to_pass(stderr: float, items: int, margin: float, degrees: float = math.inf) -> int:
    """Items in all, of one draw, that show with POWER that nothing is worse by `margin`.

    That is so where nothing is. stderr, degrees: of the difference on `items` items, whose variance
    falls and whose degrees of freedom rise with the items.
    """

    def is_shown(more: int) -> bool:
        times = more / items
        return detectable(stderr / math.sqrt(times), degrees * times) <= margin

    # By normal quantiles, which are less than Student's; a thousand times as many always do.
    least = max(items, math.ceil(items * (detectable(stderr) / margin) ** 2))
    return _first(is_shown, least, MOST * least) or least


def draws_to_pass(squares: MeanSquares, margin: float) -> int | None:
    """Draws in all, on the same items, that show it; None where more items are needed first."""
    return _first(lambda draws: _shows(squares, margin, draws, 1), squares.draws, MOST)


def clusters_to_pass(squares: MeanSquares, margin: float, draws: int) -> int | None:
    """Clusters in all, of items like these, that show it on so many draws.

    None where the spread of the draws, which no items make less, is too much, or where it takes
    MOST times as many.
    """
    here = squares.clusters
    return _first(
        lambda clusters: _shows(squares, margin, draws, clusters / here), here, MOST * here
    )


def both_to_pass(squares: MeanSquares, margin: float) -> tuple[int, int] | None:
    """(draws, clusters) in all that show it, so that the answers of all draws are the fewest.

    None where MOST draws of MOST times the clusters do not.
    """
    best: tuple[int, int] | None = None
    for draws in range(squares.draws, MOST + 1):
        if best is not None and draws * squares.clusters >= best[0] * best[1]:
            break
        clusters = clusters_to_pass(squares, margin, draws)
        if clusters is not None and (best is None or draws * clusters < best[0] * best[1]):
            best = draws, clusters
    return best


def _shows(squares: MeanSquares, margin: float, draws: int, times: float) -> bool:
    """Whether so many draws of `times` as many clusters would show it.

    The variance of the mean has a part of draws, one of clusters and one of both together:
    V = draw / D + cluster / C + both / (D C), by the expected mean squares of a two-way table with
    random effects (Searle, Casella and McCulloch 1992, Variance Components, section 4.3). Its
    degrees of freedom are the fewest, since those of Satterthwaite promise too much where the
    spread of draws is just not seen.
    """
    of_draw = max(squares.draw - squares.cell, 0.0) / squares.clusters
    of_cluster = max(squares.cluster - squares.cell, 0.0) / squares.draws
    clusters = squares.clusters * times
    variance = of_draw / draws + (of_cluster + squares.cell / draws) / clusters
    degrees = min(draws - 1, squares.cluster_degrees * times)
    return detectable(math.sqrt(variance), degrees) <= margin


def _first(holds: Callable[[int], bool], start: int, most: int) -> int | None:
    """The first number from `start` to `most` that holds, where all after one that holds do."""
    if start > most or not holds(most):
        return None
    low, high = start, most
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low
