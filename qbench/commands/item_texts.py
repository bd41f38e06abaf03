"""The texts of the items of a run, for the pages that show changed answers.

OUT/items/TASK-HASH.jsonl has a line for every item of one task on one table: `item`, as
`qbench.comparison.samples.item_name` calls it, and `fields`, the columns of its row, each bounded.
Cells share them; the sample files hold hashes, answers and scores alone.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qbench.comparison.samples import Samples, item_name, items_file
from qbench.errors import QbenchError
from qbench.experiment.plan import Plan
from qbench.files.atomic import write_text
from qbench.records import Record, TaskSpec
from qbench.tasks.data import Source
from qbench.tasks.harness import HarnessTask

LONGEST = 600  # characters of a field that are kept


def write_item_texts(plan: Plan, records: list[Record], folder: Path) -> list[Path]:
    """Write the file of every task whose items are rows of a table, unless it is there already.

    records: of the plan's cells, whose sample files say which items were asked. A table that cannot
    be read any more has no file; StoreError where the disk refuses.
    """
    samples = Samples(folder)
    paths = []
    for spec in dict.fromkeys(spec for cell in plan.cells for spec in cell.tasks):
        task = plan.tasks[spec.name]
        asked = _asked(spec, records, samples)
        path = folder / items_file(spec)
        if not isinstance(task, HarnessTask) or not asked or path.is_file():
            continue
        try:
            texts = dict(_texts(task, plan.source))
        except QbenchError:
            continue
        lines = [
            json.dumps({"item": name, "fields": texts[name]}, ensure_ascii=False) + "\n"
            for name in asked
            if name in texts
        ]
        paths.append(write_text(path, "".join(lines)))
    return paths


def _asked(spec: TaskSpec, records: list[Record], samples: Samples) -> list[str]:
    """The items of a task, from the first record that has them."""
    for record in records:
        for score in record.scores:
            if score.task == spec.name and spec in record.cell.tasks:
                rows = samples.rows(score.samples)
                if rows:
                    return list(dict.fromkeys(item_name(row) for row in rows))
    return []


def _texts(task: HarnessTask, source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of the split that is asked: its name and its fields."""
    seen: Counter[str] = Counter()
    for index, row in enumerate(source.rows(task.table_name, task.splits[-1])):
        number = index
        if task.subject_column:  # there the number is that within the subject
            subject = row[task.subject_column]
            number = seen[subject]
            seen[subject] += 1
            yield item_name({"subject": subject, "doc_id": number}), _fields(row)
        else:
            yield item_name({"doc_id": number}), _fields(row)


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row as texts or lists of texts, in their order."""
    fields: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping) and isinstance(value.get("text"), list):
            value = value["text"]  # of choices with labels
        if isinstance(value, list):
            fields[name] = [_bounded(str(member)) for member in value]
        else:
            fields[name] = _bounded(str(value))
    return fields


def _bounded(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
