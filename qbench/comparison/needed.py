"""What would decide a comparison that is undecided: how many more items or draws, in words."""

from __future__ import annotations

import math

from qbench.comparison.endpoints import Endpoint
from qbench.stats.difference import Difference
from qbench.stats.power import (
    MOST,
    both_to_pass,
    clusters_to_pass,
    draws_to_pass,
    items_to_pass,
)
from qbench.stats.replicates import MeanSquares
from qbench.stats.sequential import ALPHA


def needed(endpoint: Endpoint, harm: Difference, spread: MeanSquares | None, is_all: bool) -> str:
    """How many items or draws would show, with 80 %, that nothing is worse, if that is so.

    harm: of the endpoint. spread: of several draws, None of one. is_all: whether the data are known
    to give no more items than were asked.
    """
    there = f"{harm.items:,}, all that these data give" if is_all else f"{harm.items:,}"
    if not math.isfinite(harm.stderr):
        return "items of at least two clusters"
    if spread is not None:
        return _needed_of_draws(endpoint, harm, spread, there)
    if harm.stderr == 0:
        return f"more items, for {there}"
    items = items_to_pass(harm.stderr, harm.items, endpoint.margin, harm.degrees)
    return _more_items(items, harm.items, there)


def _needed_of_draws(endpoint: Endpoint, harm: Difference, squares: MeanSquares, there: str) -> str:
    """Of several draws: more of them, more items, or both where neither alone would do."""
    margin = endpoint.margin
    # Over draws the interval of answers reaches at least -ln(ALPHA) / items (`crossed_share`).
    least = math.ceil(-math.log(ALPHA) / margin) if endpoint.counts_answers else 0
    draws = draws_to_pass(squares, margin)
    if draws is not None and draws > harm.draws and harm.items >= least:
        return f"{draws} draws, for {harm.draws}"
    clusters = clusters_to_pass(squares, margin, harm.draws)
    both = both_to_pass(squares, margin) if clusters is None else (harm.draws, clusters)
    if both is None:
        return f"more than {MOST:,} draws or {MOST:,} times the items"
    items = max(least, math.ceil(harm.items * both[1] / squares.clusters))
    if both[0] == harm.draws:
        return _more_items(items, harm.items, there)
    return f"{both[0]} draws of {items:,} items, for {harm.draws} of {there}"


def _more_items(items: int, asked: int, there: str) -> str:
    if items <= asked:
        return "more items: it lies at the margin"
    return f"{items:,} items, for {there}"
