"""Who is better at equal measured bits: by paired differences, not by the order of the means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qbench.comparison.pairs import Pairs, ScoreKey, protocol, score_of
from qbench.records import Record

EQUAL_BITS = 0.05  # measured bits per weight that count as none


def winners(records: Sequence[Record], key: ScoreKey, pairs: Pairs) -> set[str]:
    """Ids of the cells that are better, pair by pair, than all their rivals.

    Rivals are the cells of the same model and protocol that have as many measured bits (within
    EQUAL_BITS) or fewer. One of as many must be among them: more bits alone win nothing.
    """
    found = set()
    for cell, rivals in _with_rivals(records, key):
        bits = cell.bits_per_weight["total"]
        equal = [one for one in rivals if one.bits_per_weight["total"] >= bits - EQUAL_BITS]
        if equal and all(_is_better(pairs, one, cell, key) for one in rivals):
            found.add(cell.id)
    return found


def ranks(records: Sequence[Record], key: ScoreKey, pairs: Pairs) -> dict[str, int]:
    """1 and how many rivals are better, pair by pair: cells that cannot be told apart tie."""
    found = {}
    for cell, rivals in _with_rivals(records, key):
        found[cell.id] = 1 + sum(_is_better(pairs, cell, one, key) for one in rivals)
    return found


def _with_rivals(records: Sequence[Record], key: ScoreKey) -> Iterator[tuple[Record, list[Record]]]:
    """Each quantized cell with this score, and the others that take no more bits."""
    groups: dict[object, list[Record]] = {}
    for record in records:
        if record.cell.scheme and record.bits_per_weight.get("total") and score_of(record, key):
            groups.setdefault((record.cell.model, protocol(record, key[0])), []).append(record)
    for group in groups.values():
        for cell in group:
            most = cell.bits_per_weight["total"] + EQUAL_BITS
            rivals = [one for one in group if one.id != cell.id]
            yield cell, [one for one in rivals if one.bits_per_weight["total"] <= most]


def _is_better(pairs: Pairs, base: Record, candidate: Record, key: ScoreKey) -> bool:
    found = pairs.between(base, candidate, key)
    return found is not None and found.is_better
