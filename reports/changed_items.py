"""The items that a quantized model answers otherwise than the unquantized one, in words."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.comparison.changed_answers import answer
from qbench.comparison.judging import judged_alike, protocol
from qbench.comparison.pairs import Pairs, aligned, is_unquantized
from qbench.comparison.samples import Row, item_name, items_file
from qbench.records import Record
from qbench.reports.headline import Headline, headlines
from qbench.stats.flips import Kind, count, kind_of

MOST = 40  # changed items of a task that a page shows
LONGEST = 1500  # characters of an answer or a field
TITLE = 100  # characters of a question beside its number
ANSWERS = ("acc", "exact_match")  # metrics that say of each item whether it was right
HIDDEN = ("doc_hash", "prompt_hash", "target_hash", "filter", "doc_id", "cluster", "loglikelihoods")
QUESTIONS = ("question", "question_stem", "goal", "sentence", "premise", "text")


@dataclass(frozen=True)
class Choice:
    """One choice of an item. before, after: the models' log-likelihoods of it, in nats."""

    text: str
    before: str
    after: str
    right: bool
    chosen_before: bool
    chosen_after: bool


@dataclass(frozen=True)
class Change:
    """One item. name: its number in the table of the task. title: how its question begins, empty
    where the text is not known. facts: what is known of it, and both answers where there are no
    choices.
    """

    kind: Kind
    name: str
    title: str
    facts: list[tuple[str, str]]
    choices: list[Choice]


@dataclass(frozen=True)
class Changes:
    """Those of one task. summary: how many there are of each kind. known: whether with texts."""

    name: str
    summary: str
    known: bool
    items: list[Change]


def changed_items(records: Sequence[Record], record: Record, pairs: Pairs) -> list[Changes]:
    """Of every task whose answers are right or wrong. records: of the run."""
    changes = []
    for headline in headlines([record]):
        base = _baseline(records, record, headline)
        if base is not None and headline.metric in ANSWERS and headline.unit == "%":
            of_task = _changes(base, record, headline, pairs)
            if of_task is not None:
                changes.append(of_task)
    return changes


def _baseline(records: Sequence[Record], record: Record, headline: Headline) -> Record | None:
    """The unquantized model, asked the same."""
    for base in records:
        if not is_unquantized(base):  # asked first, as runs have thousands of others
            continue
        same_model = base.cell.model == record.cell.model and base.id != record.id
        if same_model and judged_alike(base, record, headline.task) and headline.of(base):
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
    texts = _texts(record, headline.task, pairs)
    kinds: list[Kind | None] = []
    items: list[Change] = []
    for old, new in zip(before.rows, (after.rows[place] for place in order), strict=True):
        right = (bool(old[headline.metric]), bool(new[headline.metric]))
        kind = kind_of(right, (answer(old), answer(new)))
        kinds.append(kind)
        if kind is not None and len(items) < MOST:
            items.append(changed_item(kind, old, new, texts.get(item_name(new), {})))
    flips = count(kinds)
    summary = (
        f"{flips.lost} right to wrong, {flips.gained} wrong to right, {flips.moved} wrong to "
        f"another wrong, of {flips.items}"
    )
    return Changes(headline.title, summary, bool(texts), items)


def _texts(record: Record, task: str, pairs: Pairs) -> dict[str, dict[str, Any]]:
    """The columns of every item of a task that the run has kept, by the item's name."""
    spec = protocol(record, task)
    if spec is None:
        return {}
    texts = {}
    for row in pairs.samples.rows(str(items_file(spec))):
        fields = row.get("fields")
        if isinstance(fields, dict):
            texts[str(row.get("item"))] = fields
    return texts


def changed_item(kind: Kind, old: Row, new: Row, fields: dict[str, Any]) -> Change:
    """One changed item. fields: the columns of its row, empty where they are not known."""
    choices = _choices(old, new, fields)
    facts = []
    for name, value in fields.items():
        if not isinstance(value, list) or not choices:
            facts.append((name, _shown(value)))
    facts += _answers(old, new, {*fields, "target"} if choices else {*fields})
    return Change(kind, item_name(new), _title(fields), facts, choices)


def _title(fields: dict[str, Any]) -> str:
    for name in QUESTIONS:
        if isinstance(fields.get(name), str):
            line = " ".join(fields[name].split())
            return line if len(line) <= TITLE else f"{line[:TITLE]} ..."
    return ""


def _choices(old: Row, new: Row, fields: dict[str, Any]) -> list[Choice]:
    """The choices with both models' log-likelihoods; none of an item without choices."""
    before, after = old.get("loglikelihoods"), new.get("loglikelihoods")
    if not isinstance(before, list) or not isinstance(after, list) or len(before) != len(after):
        return []
    words = [value for value in fields.values() if isinstance(value, list)]
    texts = words[0] if len(words) == 1 and len(words[0]) == len(after) else None
    choices = []
    for k, (first, second) in enumerate(zip(before, after, strict=True)):
        choices.append(
            Choice(
                text=f"choice {k + 1}" if texts is None else _shown(texts[k]),
                before=f"{first:.2f}",
                after=f"{second:.2f}",
                right=new.get("target") == k,
                chosen_before=answer(old) == k,
                chosen_after=answer(new) == k,
            )
        )
    return choices


def _answers(old: Row, new: Row, without: Collection[str]) -> list[tuple[str, str]]:
    """What the rows say of an item: once where they agree, else of both models."""
    facts = []
    for key, value in new.items():
        if key in HIDDEN or key in without:
            continue
        before = old.get(key)
        if before == value:
            facts.append((key, _shown(value)))
        else:
            facts.append((f"{key}, unquantized", _shown(before)))
            facts.append((f"{key}, quantized", _shown(value)))
    return facts


def _shown(value: Any) -> str:
    """A value as text of bounded length."""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
