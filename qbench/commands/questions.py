"""The texts of questions whose answers changed, from the data of their tasks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from qbench.comparison.judging import protocol
from qbench.comparison.matching import Side
from qbench.comparison.verdicts import CellVerdict, Finding, Verdict
from qbench.errors import QbenchError
from qbench.records import TaskSpec
from qbench.tasks.data import Source, open_source
from qbench.tasks.harness import HarnessTask
from qbench.tasks.mini_source import split_name
from qbench.tasks.registry import get_task

LONGEST = 160  # characters of a question that are shown
COLUMNS = ("question", "question_stem", "ctx", "goal", "sentence", "premise", "text")


def with_questions(verdict: Verdict, base: Side, data: str | None) -> Verdict:
    """The verdict with the text of every changed item that the data on this machine contain.

    data: as for `qbench run`; None for the embedded data where the run used these, else for `auto`.
    Data whose content has changed are not quoted.
    """
    cells = []
    for cell in verdict.cells:
        findings = tuple(_quoted(cell, finding, base, data) for finding in cell.findings)
        cells.append(replace(cell, findings=findings))
    return replace(verdict, cells=tuple(cells))


def _quoted(cell: CellVerdict, finding: Finding, base: Side, data: str | None) -> Finding:
    if not finding.changes:
        return finding
    task = finding.endpoint.key[0]
    specs = [protocol(record, task) for record in base.records if record.cell.model == cell.model]
    spec = next((known for known in specs if known is not None), None)
    if spec is None:
        return finding
    try:
        texts = questions(spec, data)
    except QbenchError:  # the data are not here: the numbers of the items must do
        return finding
    changes = tuple(replace(change, text=texts.get(change.item, "")) for change in finding.changes)
    return replace(finding, changes=changes)


def questions(spec: TaskSpec, data: str | None) -> dict[str, str]:
    """Item, as changes name it -> its question in one line; nothing where the data are others.

    Raises DataError or ConfigError where there is no such task or table.
    """
    prefix, name = split_name(spec.name)
    source = open_source(data or ("mini" if prefix else "auto"))
    task = get_task(name)
    if not isinstance(task, HarnessTask) or source.sha256(task.table_name) != spec.sha256:
        return {}
    return _texts(task, source)


def _texts(task: HarnessTask, source: Source) -> dict[str, str]:
    rows = source.rows(task.table_name, task.splits[-1])
    column = next((name for name in COLUMNS if name in rows.column_names), None)
    if column is None:
        return {}
    subjects = rows[task.subject_column][:] if task.subject_column else None
    seen: Counter[str] = Counter()
    texts = {}
    for index, text in enumerate(rows[column][:]):
        item = str(index)
        if subjects is not None:  # there the number is that within the subject
            item = f"{subjects[index]} {seen[subjects[index]]}"
            seen[subjects[index]] += 1
        line = " ".join(str(text).split())
        texts[item] = line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
    return texts
