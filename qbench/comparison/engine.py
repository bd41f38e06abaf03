"""Whether both sides were judged alike: the scores of the unquantized model in both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

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
    allowed: Sequence[str],
) -> list[str]:
    """Sentences about scores of the unquantized model that differ between the two sides.

    Then the engine, the batch or the machine has changed, and no method is to blame. allowed: what
    may differ between the two, see `differences`; only this comparison shows how much such a
    difference alone changes a score.
    """
    reasons = []
    for entry, other in _likes(base, candidate, allowed, tasks):
        if entry.id == other.id and base.folder == candidate.folder:
            continue
        for endpoint in endpoints(entry, other, margins, tasks):
            reasons += _engine_reason(endpoint, entry, other, readers)
    return list(dict.fromkeys(reasons))  # several commands may have asked one model


def _likes(
    base: Side, candidate: Side, allowed: Sequence[str], tasks: Sequence[str] | None
) -> Iterator[tuple[Record, Record]]:
    """The pairs of unquantized models of base and candidate that are compared.

    The two of a pair have no partner that is more alike: where the dtype is allowed to differ, and
    both sides have two dtypes, each is compared with the same dtype.
    """
    bases, others = (
        [record for record in side.records if is_unquantized(record)] for side in (base, candidate)
    )
    counts: dict[tuple[int, int], int] = {}  # of differences, by the indices of a pair
    for row, entry in enumerate(bases):
        for column, other in enumerate(others):
            if not differences(entry, other, allowed, tasks):
                counts[row, column] = len(differences(entry, other, tasks=tasks))
    for (row, column), count in counts.items():
        of_base = [counts[spot] for spot in counts if spot[0] == row]
        of_other = [counts[spot] for spot in counts if spot[1] == column]
        if count == min(of_base + of_other):
            yield bases[row], others[column]


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
    known = differences(entry, other, tasks=(endpoint.key[0],))
    blamed = f" ({'; '.join(known)}), which --allow does not make good" if known else ""
    return [
        f"{endpoint.name} of {entry.cell.model}: the unquantized model itself differs by "
        f"{harm:+.2g}, more than a tenth of the margin {endpoint.margin:.2g}, so the engine or "
        f"the machine has changed{blamed}; run both sides on the same one"
    ]
