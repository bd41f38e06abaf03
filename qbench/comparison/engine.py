"""Whether the machine judges as it did: the unquantized model against itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qbench.comparison.comparable import differences, shared_items
from qbench.comparison.endpoints import Endpoint, endpoints, values
from qbench.comparison.matching import Side
from qbench.comparison.pairs import Pairs, is_unquantized
from qbench.records import Record

ENGINE = 0.1  # of a margin: how far the unquantized model may be from itself


def engine_reasons(
    base: Side,
    candidate: Side,
    readers: tuple[Pairs, Pairs],
    margins: Mapping[str, float],
    tasks: Sequence[str] | None,
) -> list[str]:
    """What tells that the unquantized model itself is scored otherwise in the two.

    Then the engine, the batch or the machine has changed, and no method is to blame.
    """
    reasons = []
    for entry in base.records:
        for other in candidate.records:
            if not (is_unquantized(entry) and is_unquantized(other)):
                continue
            if entry.id == other.id and base.folder == candidate.folder:
                continue
            if entry.cell.model != other.cell.model or differences(entry, other):
                continue
            for endpoint in endpoints(entry, other, margins, tasks):
                reasons += _engine_reason(endpoint, entry, other, readers)
    return reasons


def _engine_reason(
    endpoint: Endpoint, entry: Record, other: Record, readers: tuple[Pairs, Pairs]
) -> list[str]:
    if endpoint.key[1] == "kl_mean":  # of a model from itself: rounding
        return []
    items, _ = shared_items(endpoint, [(entry, other)], readers)
    if items is None:
        return []
    tables = values(*items)
    harm = float(endpoint.harms(*tables).mean())
    if abs(harm) <= ENGINE * endpoint.margin:
        return []
    return [
        f"{endpoint.name}: the unquantized model itself differs by {harm:+.2g}, more than a tenth "
        f"of the margin {endpoint.margin:.2g}, so the engine or the machine has changed"
    ]
