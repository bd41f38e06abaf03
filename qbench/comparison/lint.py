"""What may be wrong with the evaluations of a run: what a cell knows, and what its siblings show.

What needs other cells is worked out from records and items when a report is written, since cells of
one run end one after the other: whether answers became longer, and whether a task tells methods
apart at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from qbench.comparison.judging import judged_alike, judged_by
from qbench.comparison.matching import cell_key
from qbench.comparison.pairs import (
    Pairs,
    ScoreKey,
    aligned,
    is_unquantized,
    score_of,
)
from qbench.comparison.ranks import MADE_BY
from qbench.comparison.samples import Items
from qbench.records import Caution, Record
from qbench.stats.difference import log_ratio
from qbench.tasks.mini_source import record_names
from qbench.tasks.registry import ordered_tasks

LONGER = 1.1  # a factor of mean lengths that is worth a word
ALPHA = 0.05
WRITTEN = "exact_match"  # the metric of written answers


def lint(records: Sequence[Record], pairs: Pairs) -> dict[str, list[Caution]]:
    """Every caution by cell id; cells without any are left out.

    What is said of a task and not of a cell stands at the first cell that was asked it.
    """
    cautions = {record.id: list(record.warnings) for record in records}
    bases = [record for record in records if is_unquantized(record)]
    for record in records:
        cautions[record.id] += other_lengths(bases, record, pairs)
        cautions[record.id] += lost_items(record, pairs)
    for record, caution in indistinct(records, pairs):
        cautions[record.id].append(caution)
    return {name: said for name, said in cautions.items() if said}


def lost_items(record: Record, pairs: Pairs) -> Iterator[Caution]:
    """Tasks whose file of items is not there, where the run has a folder."""
    if pairs.samples.folder is None:
        return
    for task, path in dict.fromkeys((score.task, score.samples) for score in record.scores):
        digest = record.evaluation.get(task, {}).get("samples_sha256")
        if path is not None and not pairs.samples.rows(path, digest):
            text = "its items are missing or damaged, so that it is paired with no other cell"
            yield Caution(kind="lost-items", task=task, text=text)


def other_lengths(bases: Sequence[Record], record: Record, pairs: Pairs) -> Iterator[Caution]:
    """Written answers that are longer or shorter than the unquantized model's, beyond chance.

    bases: the unquantized models of the run.
    """
    if is_unquantized(record):
        return
    for task, name in _written(record):
        key = (task, WRITTEN, name)
        for base in bases:
            if base.cell.model != record.cell.model or not judged_alike(base, record, task):
                continue
            text = _lengths(pairs.items(base, key), pairs.items(record, key))
            if text is not None:
                yield Caution(kind="length", task=task, text=text)
                break  # other records of the same model say the same


def _written(record: Record) -> list[tuple[str, str]]:
    """The tasks with written answers, each with the first of its filters."""
    filters: dict[str, str] = {}
    for score in record.scores:
        if score.metric == WRITTEN:
            filters.setdefault(score.task, score.filter)
    return list(filters.items())


def _lengths(first: Items | None, second: Items | None) -> str | None:
    """What to say of two cells' answers to the same items; None where nothing is."""
    order = None if first is None or second is None else aligned(first, second)
    if first is None or second is None or order is None:
        return None
    # An empty answer counts as a token, so that lengths have a ratio.
    before = [max(1, int(row.get("tokens", 1))) for row in first.rows]
    after = [max(1, int(second.rows[place].get("tokens", 1))) for place in order]
    ratio = log_ratio(np.array(before, float), np.array(after, float), first.clusters)
    low, value, high = (math.exp(min(x, 700)) for x in (ratio.low, ratio.value, ratio.high))
    if low <= 1 <= high or 1 / LONGER < value < LONGER:
        return None
    return (
        f"answers have {value:.2f} times [{low:.2f}, {high:.2f}] the tokens of the unquantized "
        f"model's, on {len(before)} items"
    )


def indistinct(records: Sequence[Record], pairs: Pairs) -> Iterator[tuple[Record, Caution]]:
    """Scores by which no two methods of equal bits can be told apart, each with its first cell.

    At each width the cell with the best mean is held against the one with the worst, on the same
    items; their p-value is multiplied by the number of pairs that they were chosen from.
    """
    for key, group in _groups(records):
        by_width: dict[float, list[tuple[float, Record]]] = {}
        for record in group:
            score = score_of(record, key)
            if score is not None and record.cell.scheme is not None:
                by_width.setdefault(record.cell.scheme.width, []).append((score.value, record))
        extremes = [_extremes(entries, key, pairs) for entries in by_width.values()]
        known = [p_value for p_value in extremes if p_value is not None]
        if known and min(known) * len(known) > ALPHA:
            text = (
                f"{key[1]} does not tell the methods apart at any width: among "
                f"{len(group)} quantized cells the best and the worst of equal bits differ by no "
                "more than chance among so many pairs; ask more items, or do not rank by it"
            )
            yield group[0], Caution(kind="indistinct", task=key[0], text=text)


def _extremes(entries: Sequence[tuple[float, Record]], key: ScoreKey, pairs: Pairs) -> float | None:
    """The adjusted p-value of best against worst; None where they cannot be paired.

    And where all are draws of one cell, which are not to be told apart. entries: values and cells.
    """
    records = [record for _, record in sorted(entries, key=lambda entry: entry[0])]
    if len({cell_key(record.cell, MADE_BY) for record in records}) == 1:
        return None
    contrast = pairs.between(records[0], records[-1], key)
    if contrast is None:
        return None
    count = len(entries)
    return min(1.0, contrast.difference.p_value * count * (count - 1) / 2)


def _groups(records: Sequence[Record]) -> list[tuple[ScoreKey, list[Record]]]:
    """The quantized cells of one model that were judged alike, by headline score.

    Of cells that several commands have asked the same, the first.
    """
    shown = _headlines()
    groups: dict[tuple[object, ...], tuple[ScoreKey, dict[str, Record]]] = {}
    for record in records:
        if record.cell.scheme is None:
            continue
        artifact = record.cell.artifact
        for score in record.scores:
            key = (score.task, score.metric, score.filter)
            if key not in shown:
                continue
            alike = (key, record.cell.model, *judged_by(record, score.task))
            groups.setdefault(alike, (key, {}))[1].setdefault(artifact, record)
    return [(key, list(group.values())) for key, group in groups.values()]


def _headlines() -> set[ScoreKey]:
    """The scores that tasks declare as headlines, on real and on embedded data."""
    keys = set()
    for task in ordered_tasks():
        for name in record_names(task.name):
            keys |= {(name, score.metric, score.filter) for score in task.scores if score.headline}
    return keys
