"""Scores that may say nothing of a model, such as accuracies that guessing reaches, in words."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from qbench.comparison.judging import protocol
from qbench.comparison.pairs import is_unquantized
from qbench.records import Record, Score, labels
from qbench.reports.cell_names import ordered

LISTED = 6  # parts of a task by name


class _Doubt(NamedTuple):
    """A score that may say nothing. facts: figures of it, that stand behind the reason."""

    record: Record
    score: Score
    facts: str


def doubts(
    records: Sequence[Record], only: Collection[tuple[str, str]] | None = None
) -> list[tuple[str, str]]:
    """(which cells, which scores and why) of scores that may say nothing; a line for each reason.

    Scores of one task and of its parts (MMLU's subjects) share a line. A cell is named by its model
    and label; of several their number is given, and one as an example. only: of these scores, by
    task and metric.
    """
    names = labels(record.cell for record in records)
    lines = []
    for (model, task, kind), members in _alike(records, only).items():
        whole = [member for member in members if member.score.task == task]
        example = (whole or members)[0]
        name = names[example.record.cell.id]
        if is_unquantized(example.record):
            name = "unquantized"
        cells = {member.record.id for member in members}
        where = f"{len(cells)} cells of {model}" if len(cells) > 1 else f"{model} {name}"
        what = _together(task, [member.score for member in members])
        lines.append((where, f"{what}: {_reason(kind, example, members, name)}"))
    return lines


def _alike(
    records: Sequence[Record], only: Collection[tuple[str, str]] | None
) -> dict[tuple[str, str, str], list[_Doubt]]:
    """The doubtful scores by model, task and kind of doubt. only: as of `doubts`."""
    alike: dict[tuple[str, str, str], list[_Doubt]] = {}
    for record in ordered(records):
        for score in record.scores:
            if score.suspicion and (only is None or (score.task, score.metric) in only):
                kind, _, facts = score.suspicion.partition(": ")
                key = (record.cell.model, _task_of(record, score), kind)
                alike.setdefault(key, []).append(_Doubt(record, score, facts))
    return alike


def _reason(kind: str, example: _Doubt, members: Sequence[_Doubt], name: str) -> str:
    """Why the members say nothing, by one of them. name: of the example's cell."""
    if not example.facts:
        return kind
    of = []
    if len({member.record.id for member in members}) > 1:
        of.append(name)
    if len({(member.score.task, member.score.metric) for member in members}) > 1:
        of.append(f"{example.score.task} {example.score.metric}")
    return f"{kind}; for {', '.join(of)}: {example.facts}" if of else f"{kind}: {example.facts}"


def _task_of(record: Record, score: Score) -> str:
    """The task that a score is of: the score of a part is named TASK_PART."""
    spec = protocol(record, score.task)
    return score.task if spec is None else spec.name


def _together(task: str, scores: Sequence[Score]) -> str:
    """Scores of one task in words, such as `mmlu acc, acc_macro, and acc of 2 parts (a, b)`."""
    whole = dict.fromkeys(score.metric for score in scores if score.task == task)
    of_parts = dict.fromkeys(score.metric for score in scores if score.task != task)
    parts = dict.fromkeys(score.task.removeprefix(f"{task}_") for score in scores)
    parts.pop(task, None)
    words = [f"{task} {', '.join(whole)}"] if whole else []
    if parts:
        listed = f" ({', '.join(parts)})" if len(parts) <= LISTED else ""
        counted = f"{len(parts)} part{'s' if len(parts) > 1 else ''}{listed}"
        words.append(f"{', '.join(of_parts)} of {counted}" + ("" if whole else f" of {task}"))
    return ", and ".join(words)
