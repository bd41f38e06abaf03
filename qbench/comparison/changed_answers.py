"""Which answers changed between two cells, and how."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from qbench.comparison.samples import Items, Row, item_name
from qbench.stats.flips import Flips, Kind, count, kind_of

SHOWN = 10  # changed answers that are listed


@dataclass(frozen=True)
class Change:
    """One answer that changed.

    item: where it stands in its data. before, after: the answers. text: the question, where known.
    """

    kind: Kind
    item: str
    target: str
    before: str
    after: str
    text: str = ""


def flips(base: Items, candidate: Items, order: Sequence[int]) -> tuple[Flips, list[Change]]:
    """How many answers changed, and the first of them, those that became wrong first.

    order: where each of the base's items stands among the candidate's.
    """
    kinds = []
    changes = []
    for index, place in enumerate(order):
        rows = base.rows[index], candidate.rows[place]
        right = bool(base.values[index] == 1), bool(candidate.values[place] == 1)
        kind = kind_of(right, (answer(rows[0]), answer(rows[1])))
        kinds.append(kind)
        if kind is not None:
            before, after = str(answer(rows[0])), str(answer(rows[1]))
            changes.append(
                Change(kind, item_name(rows[0]), str(rows[0].get("target")), before, after)
            )
    order_of = ("right to wrong", "wrong to right", "wrong to another wrong")
    changes.sort(key=lambda change: order_of.index(change.kind))
    return count(kinds), changes[:SHOWN]


def answer(row: Row) -> Hashable:
    """What was answered: the number of the likeliest choice, or what a filter took from a text."""
    logs = row.get("loglikelihoods")
    if isinstance(logs, list) and logs:
        return int(np.argmax(logs))
    filtered = row.get("filtered")
    if isinstance(filtered, list):
        return " ".join(str(text) for text in filtered)
    return str(filtered)
