"""The published data sets behind the tasks of a run, for the cards of its models."""

from __future__ import annotations

from collections.abc import Mapping

from qbench.checkpoint.card_metadata import Benchmark
from qbench.tasks.contract import Task
from qbench.tasks.declaration import Table


def benchmarks(tasks: Mapping[str, Task]) -> dict[str, Benchmark]:
    """The data set of each task with questions, by the task's name in records; not of stand-ins.

    tasks: by the name in records, which for stand-in data is not the task's own name.
    """
    published = {}
    for name, task in tasks.items():
        if name != task.name or task.kind == "text" or not isinstance(task.table, Table):
            continue
        headline = next((score for score in task.scores if score.headline), task.scores[0])
        published[name] = Benchmark(
            task.table.repository,
            task.table.config,
            task.table.splits[-1],
            headline.metric,
            headline.filter,
            task.cost.items,
        )
    return published
