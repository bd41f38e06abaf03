"""Divides a fraction of bits between layers: each gets a whole width, and all cost the least.

This is a multiple-choice knapsack problem: every layer takes one of its widths, all weights
together may have so many bits, and the sum of the layers' costs is to be least. Sizes of layers
have a large common divisor. So dynamic programming finds the least cost for every number of such
portions of bits, layer by layer. With thousands of layers that takes too long; then layers are
widened in the order of gain per bit. Along the lower convex hull of a layer's costs, every further
bit gains less than the one before (Sinha and Zoltners 1979, The multiple-choice knapsack problem,
Operations Research 27).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MOST = 100_000_000  # layers times portions of bits: about a second, and as many bytes
ROWS = 24  # of such bytes that numbers of one layer take beside
Costs = Mapping[str, Mapping[int, float]]


class Step(NamedTuple):
    """From one width of a layer to a wider one. gain: of cost per bit of all its weights."""

    layer: str
    start: int
    end: int
    gain: float

    def bits(self, sizes: Mapping[str, int]) -> int:
        """How many it takes. sizes: weights of each layer."""
        return sizes[self.layer] * (self.end - self.start)


def allocate(sizes: Mapping[str, int], costs: Costs, budget: float) -> dict[str, int]:
    """A width for each layer, whose average over all weights is at most `budget`.

    sizes: weights of each layer. costs: of each layer by width; all have the same widths, of which
    the least is within the budget. Ties go to the layer that comes first.

    No other way costs less, up to rounding, while layers times portions of bits are at most `MOST`.
    Beyond that one may cost less, by no more than what a single step of a layer gains; no uniform
    width within the budget does.
    """
    spare = sum(size * (budget - min(costs[layer])) for layer, size in sizes.items())
    spare *= 1 + 1e-12  # what a sum of products of a fraction is off by
    portion = math.gcd(*sizes.values())
    portions = int(spare // portion)
    if (len(sizes) + ROWS) * (portions + 1) <= MOST:
        return _exact(sizes, costs, portion, portions)
    ways = [_greedy(sizes, costs, spare)]
    for width in next(iter(costs.values())):
        if width <= budget * (1 + 1e-12):
            ways.append(dict.fromkeys(sizes, width))
    return min(ways, key=lambda way: sum(costs[layer][width] for layer, width in way.items()))


def _exact(sizes: Mapping[str, int], costs: Costs, portion: int, portions: int) -> dict[str, int]:
    """The least cost of all. portions: of so many bits, beyond the least width of every layer."""
    least = np.zeros(portions + 1)  # of the layers so far, with at most so many portions
    taken: dict[str, NDArray[np.uint8]] = {}  # by them the width of each
    for layer, size in sizes.items():
        own = sorted(costs[layer].items())
        start = own[0][0]
        best = least + own[0][1]
        chosen = np.full(portions + 1, start, np.uint8)
        for width, cost in own[1:]:
            step = size // portion * (width - start)
            if step > portions:
                break
            wider = least[: portions + 1 - step] + cost
            better = wider < best[step:]
            best[step:][better] = wider[better]
            chosen[step:][better] = width
        least, taken[layer] = best, chosen
    widths: dict[str, int] = {}
    for layer in reversed(list(sizes)):
        widths[layer] = int(taken[layer][portions])
        portions -= sizes[layer] // portion * (widths[layer] - min(costs[layer]))
    return {layer: widths[layer] for layer in sizes}


def _greedy(sizes: Mapping[str, int], costs: Costs, left: float) -> dict[str, int]:
    """Steps in the order of gain per bit. left: bits beyond the least width of every layer."""
    widths = {layer: min(costs[layer]) for layer in sizes}
    steps = [step for layer in sizes for step in hull(layer, sizes[layer], costs[layer])]
    for step in sorted(steps, key=_most_first):
        # A layer whose step does not fit stays where it is; others may still fit.
        if widths[step.layer] == step.start and step.bits(sizes) <= left:
            widths[step.layer] = step.end
            left -= step.bits(sizes)
    # What is left goes to any step that fits, off the hull, too.
    while True:
        steps = []
        for layer, width in widths.items():
            steps += [s for s in wider(layer, sizes[layer], costs[layer], width) if s.gain > 0]
        fitting = [step for step in steps if step.bits(sizes) <= left]
        if not fitting:
            return widths
        step = min(fitting, key=_most_first)
        widths[step.layer] = step.end
        left -= step.bits(sizes)


def hull(layer: str, size: int, costs: Mapping[int, float]) -> list[Step]:
    """The steps along the lower convex hull of a layer's costs, each of less gain than before.

    They end where a further bit would gain nothing.
    """
    steps: list[Step] = []
    start = min(costs)
    while True:
        best = min(wider(layer, size, costs, start), key=_most_first, default=None)
        if best is None or best.gain <= 0:
            return steps
        steps.append(best)
        start = best.end


def wider(layer: str, size: int, costs: Mapping[int, float], start: int) -> list[Step]:
    """Every step of a layer from a width to a wider one."""
    steps = []
    for width, cost in costs.items():
        if width > start:
            gain = (costs[start] - cost) / (size * (width - start))
            steps.append(Step(layer, start, width, gain))
    return steps


def _most_first(step: Step) -> tuple[float, int]:
    """A key that puts steps of more gain first, and of equal ones the shorter."""
    return -step.gain, step.end


def average(sizes: Mapping[str, int], widths: Mapping[str, int]) -> float:
    """Bits of a weight, over all of them."""
    return sum(size * widths[layer] for layer, size in sizes.items()) / sum(sizes.values())
