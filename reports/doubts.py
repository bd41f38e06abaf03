"""Scores that may say nothing of a model, such as accuracies that guessing reaches, in words."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from qbench.comparison.judging import protocol
from qbench.records import Record, Score, labels
from qbench.reports.cell_names import ordered, unquantized

LISTED = 6  # parts of a task by name


def doubts(
    records: Sequence[Record], only: Collection[tuple[str, str]] | None = None
) -> list[tuple[str, str]]:
    """(which cells, which scores and why) of scores that may say nothing; a line for each reason.

    Scores of one task and of its parts (MMLU's subjects) share a line. A cell is named by its model
    and label; of several their number is given, and one as an example. only: of these scores, by
    task and metric.
    """
    told = labels(record.cell for record in records)
    alike: dict[tuple[str, str, str], list[tuple[Record, Score]]] = {}
    for record in ordered(records):
        for score in record.scores:
            if score.suspicion and (only is None or (score.task, score.metric) in only):
                kind = score.suspicion.partition(": ")[0]
                key = (record.cell.model, _task_of(record, score), kind)
                alike.setdefault(key, []).append((record, score))
    lines = []
    for (model, task, kind), members in alike.items():
        whole = [member for member in members if member[1].task == task]
        record, score = (whole or members)[0]
        name = "unquantized" if unquantized(record) else told[record.cell.id]
        facts = (score.suspicion or "").partition(": ")[2]
        cells = {record.id for record, _ in members}
        example = [name] if len(cells) > 1 else []
        scores = {(score.task, score.metric) for _, score in members}
        if len(scores) > 1:
            example.append(f"{score.task} {score.metric}")
        reason = f"{kind}: {facts}" if facts else kind
        if facts and example:
            reason = f"{kind}; for {', '.join(example)}: {facts}"
        where = f"{len(cells)} cells of {model}" if len(cells) > 1 else f"{model} {name}"
        lines.append((where, f"{_together(task, [score for _, score in members])}: {reason}"))
    return lines


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
