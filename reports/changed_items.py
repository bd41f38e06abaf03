"""The items that a quantized model answers otherwise than the unquantized one, in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.comparison.pairs import Pairs, aligned, is_unquantized, judged_alike
from qbench.comparison.samples import Row
from qbench.records import Record
from qbench.reports.headline import Headline, headlines
from qbench.stats.flips import Kind, count, kind_of

MOST = 40  # changed items of a task that a page shows
ANSWERS = ("acc", "exact_match")  # metrics that say of each item whether it was right
HIDDEN = ("doc_hash", "prompt_hash", "target_hash", "filter")


@dataclass(frozen=True)
class Change:
    """One item. doc: its number in the table of the task. text: it, and both answers."""

    kind: Kind
    doc: str
    text: str


@dataclass(frozen=True)
class Changes:
    """Those of one task. summary: how many there are of each kind."""

    name: str
    summary: str
    items: list[Change]


def changed_items(records: Sequence[Record], record: Record, pairs: Pairs) -> list[Changes]:
    """Of every task whose answers are right or wrong. records: of the run."""
    changes = []
    for headline in headlines([record]):
        base = _baseline(records, record, headline)
        if base is not None and headline.metric in ANSWERS:
            of_task = _changes(base, record, headline, pairs)
            if of_task is not None:
                changes.append(of_task)
    return changes


def _baseline(records: Sequence[Record], record: Record, headline: Headline) -> Record | None:
    """The unquantized model, asked the same."""
    for base in records:
        same_model = base.cell.model == record.cell.model and base.id != record.id
        asked_alike = judged_alike(base, record, headline.task)
        if same_model and asked_alike and is_unquantized(base) and headline.of(base):
            return base
    return None


def _changes(base: Record, record: Record, headline: Headline, pairs: Pairs) -> Changes | None:
    before = pairs.items(base, headline.key)
    after = pairs.items(record, headline.key)
    if before is None or after is None:
        return None
    order = aligned(before, after)
    if order is None:
        return None
    kinds: list[Kind | None] = []
    items: list[Change] = []
    for old, new in zip(before.rows, (after.rows[place] for place in order), strict=True):
        right = (bool(old[headline.metric]), bool(new[headline.metric]))
        kind = kind_of(right, (_answer(old), _answer(new)))
        kinds.append(kind)
        if kind is not None and len(items) < MOST:
            items.append(Change(kind, str(new.get("doc_id", "")), _text(old, new)))
    flips = count(kinds)
    summary = (
        f"{flips.lost} right to wrong, {flips.gained} wrong to right, {flips.moved} wrong to "
        f"another wrong, of {flips.items}"
    )
    return Changes(headline.title, summary, items)


def _answer(row: Row) -> str:
    """The choice, or the text that the filter took out of what was generated."""
    likelihoods = row.get("loglikelihoods")
    if isinstance(likelihoods, list) and likelihoods:
        return str(likelihoods.index(max(likelihoods)))
    return json.dumps(row.get("filtered"))


def _text(old: Row, new: Row) -> str:
    """The item and what both models answered, a fact on a line."""
    return "\n".join(_lines(old, new))


def _lines(old: Row, new: Row) -> Iterator[str]:
    for key, value in new.items():
        if key in HIDDEN:
            continue
        before = old.get(key)
        if before == value:
            yield f"{key}: {_shown(value)}"
        else:
            yield f"{key}, unquantized: {_shown(before)}"
            yield f"{key}, quantized: {_shown(value)}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
