"""Whole widths for layers whose bits average a fraction: where a bit buys most, it is spent.

A multiple-choice knapsack: every layer takes one of its widths, the sum of what they cost is to be
least, and their weights may have so many bits in all. Along the lower convex hull of a layer's
costs every further bit buys less than the one before, so that the steps of all layers are taken in
the order of gain per bit, which is optimal where the budget is met exactly (Sinha and Zoltners
1979, The multiple-choice knapsack problem, Operations Research 27).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Step(NamedTuple):
    """From one width of a layer to a wider one. gain: of cost per bit of all its weights."""

    layer: str
    start: int
    end: int
    gain: float

    def bits(self, sizes: Mapping[str, int]) -> int:
        """How many it takes. sizes: weights of each layer."""
        return sizes[self.layer] * (self.end - self.start)


def allocate(
    sizes: Mapping[str, int], costs: Mapping[str, Mapping[int, float]], budget: float
) -> dict[str, int]:
    """A width for each layer, whose average over all weights is at most `budget`.

    sizes: weights of each layer. costs: of each layer by width; all have the same widths, of which
    the least is within the budget. Ties go to the layer that comes first.
    """
    widths = {layer: min(costs[layer]) for layer in sizes}
    left = sum(size * (budget - widths[layer]) for layer, size in sizes.items())
    left *= 1 + 1e-12  # what a sum of products of a fraction is off by
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
