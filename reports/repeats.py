"""Cells that several commands have judged, each in tasks of its own, in one folder."""

from __future__ import annotations

from collections.abc import Sequence

from qbench.comparison.judging import judged_alike
from qbench.comparison.pairs import score_of
from qbench.records import Record


def without_repeats(records: Sequence[Record]) -> list[Record]:
    """The records without those cells of which another one says all that they do, and more.

    That is the same model, quantized or not, which was asked the same tasks in the same way, and
    others beside them. In files for programs each keeps its rows.
    """
    asked = {tuple(spec.name for spec in record.cell.tasks) for record in records}
    if len(asked) == 1:
        return list(records)
    alike: dict[str, list[Record]] = {}
    for record in records:
        if record.status == "ok":
            alike.setdefault(record.cell.artifact, []).append(record)
    repeats = {
        record.id
        for group in alike.values()
        for record in group
        if any(_says_more(other, record) for other in group)
    }
    return [record for record in records if record.id not in repeats]


def _says_more(other: Record, record: Record) -> bool:
    """Whether a cell of the same model was asked more, and has all that a record has."""
    if len(other.cell.tasks) <= len(record.cell.tasks):
        return False
    if record.latency is not None and other.latency is None:
        return False
    return all(
        score_of(other, (score.task, score.metric, score.filter)) is not None
        and judged_alike(record, other, score.task)
        for score in record.scores
    )
