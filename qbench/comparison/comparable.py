"""Whether two cells may be compared: what must agree, and what differs, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qbench.comparison.endpoints import Endpoint
from qbench.comparison.judging import code_of, declared_in, packages_of, protocol
from qbench.comparison.pairs import Pairs, ScoreKey, aligned, score_of
from qbench.comparison.samples import Items
from qbench.records import Record

ALLOWABLE = ("calibration", "dtype", "batch_size", "device", "evaluation", "packages")


def differences(
    base: Record,
    candidate: Record,
    allowed: Sequence[str] = (),
    tasks: Sequence[str] | None = None,
) -> list[str]:
    """Why two cells are not comparable, apart from their items; empty where they are.

    allowed: of ALLOWABLE, what may differ. tasks: those that count, None for all.
    """
    complaints = []
    first, second = base.cell, candidate.cell
    for name in ("model", "revision"):
        complaints += _differs(name, getattr(first, name), getattr(second, name))
    for name in ("dtype", "batch_size", "device"):
        if name not in allowed:
            said = name.replace("_", " ")
            complaints += _differs(said, getattr(first, name), getattr(second, name))
    if "evaluation" not in allowed:
        complaints += _evaluation(base, candidate, tasks)
    if "calibration" not in allowed and first.calibration and second.calibration:
        complaints += _fields("calibration", first.calibration, second.calibration)
    if "packages" not in allowed:
        complaints += _packages(base, candidate)
    return complaints


def draws_differ(
    draws: Sequence[tuple[Record, Record]],
    allowed: Sequence[str] = (),
    tasks: Sequence[str] | None = None,
) -> list[str]:
    """Why draws, a base and a candidate of each, are not comparable, apart from their items.

    A mean over draws needs also the draws of one side to be judged alike. allowed, tasks: as of
    `differences`.
    """
    complaints = []
    for base, candidate in draws:
        complaints += differences(base, candidate, allowed, tasks)
    for first, *others in zip(*draws, strict=True):
        for other in others:
            reasons = differences(first, other, allowed, tasks)
            complaints += [f"draws of one side: {reason}" for reason in reasons]
    return complaints


def items_differ(
    base: Record, candidate: Record, key: ScoreKey, items: Items | None, others: Items | None
) -> list[str]:
    """Why one score of two cells is not comparable: its protocol, its items, or their prompts.

    items, others: of base and candidate, None where they cannot be read.
    """
    task = key[0]
    asked, again = protocol(base, task), protocol(candidate, task)
    if asked != again and asked and again:
        return _fields(task, asked, again)
    first, second = score_of(base, key), score_of(candidate, key)
    if first is None or second is None:
        side = "base" if first is None else "candidate"
        return [f"{task}: the {side} has no {key[1]}"]
    if first.n != second.n:
        return [f"{task}: {first.n} against {second.n} items"]
    if items is None or others is None:
        side = "base" if items is None else "candidate"
        return [f"{task}: the {side}'s sample file is missing, damaged, or not that of its score"]
    order = aligned(items, others)
    if order is None:
        known = set(others.keys)
        missing = sum(item_key not in known for item_key in items.keys)
        return [f"{task}: {missing} of {len(items.keys)} items are others"]
    for column in ("prompt_hash", "target_hash", "cluster"):
        changed = sum(
            row.get(column) != others.rows[place].get(column)
            for row, place in zip(items.rows, order, strict=True)
        )
        if changed:
            return [f"{task}: {changed} of {len(order)} items differ in their {column}"]
    return []


def shared_items(
    endpoint: Endpoint, draws: Sequence[tuple[Record, Record]], readers: tuple[Pairs, Pairs]
) -> tuple[tuple[list[Items], list[Items]] | None, list[str]]:
    """The items of every draw of base and candidate; or why they are not the same."""
    measures: tuple[list[Items], list[Items]] = ([], [])
    for pair in draws:
        both = [r.items(record, endpoint.key) for r, record in zip(readers, pair, strict=True)]
        reasons = items_differ(*pair, endpoint.key, *both)
        first, second = both
        if reasons or first is None or second is None:
            return None, reasons
        measures[0].append(first)
        measures[1].append(second)
    if any(aligned(measures[0][0], entry) is None for entry in measures[0]):
        return None, [f"{endpoint.key[0]}: the draws were judged on different items"]
    return measures, []


def tasks_lacking(
    deciding: Sequence[Endpoint], draw: tuple[Record, Record], tasks: Sequence[str]
) -> list[str]:
    """Of the tasks that were asked to count, those of which no endpoint decides.

    draw: a base and a candidate.
    """
    scored = dict.fromkeys(score.task for record in draw for score in record.scores)
    decide = {endpoint.key[0] for endpoint in deciding}
    return [
        f"{task}: no score has a margin on either side; scored are {', '.join(scored) or 'none'}"
        for task in tasks
        if task not in decide
    ]


def _evaluation(base: Record, candidate: Record, tasks: Sequence[str] | None) -> list[str]:
    """In what the code that judges differs, and what the tasks declare that both were asked."""
    if base.judging is None or candidate.judging is None:
        hashes = base.cell.evaluation, candidate.cell.evaluation
        return _differs("code that judges", *hashes)
    complaints = _differs("code that judges", code_of(base), code_of(candidate))
    others = {spec.name for spec in candidate.cell.tasks}
    for spec in base.cell.tasks:
        if spec.name in others and (tasks is None or spec.name in tasks):
            hashes = declared_in(base, spec.name), declared_in(candidate, spec.name)
            complaints += _differs(f"what {spec.name} declares", *hashes)
    return complaints


def _packages(base: Record, candidate: Record) -> list[str]:
    second = packages_of(candidate)
    complaints = []
    for name, version in packages_of(base).items():
        complaints += _differs(name, version, second[name])
    return complaints


def _fields(owner: str, first: Any, second: Any) -> list[str]:
    """The fields in which two models of the same class differ."""
    complaints = []
    for name in type(first).model_fields:
        complaints += _differs(f"{owner} {name}", getattr(first, name), getattr(second, name))
    return complaints


def _differs(name: str, first: object, second: object) -> list[str]:
    if first == second:
        return []
    return [f"{name}: {_brief(first)} against {_brief(second)}"]


def _brief(value: object) -> str:
    text = "all" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
