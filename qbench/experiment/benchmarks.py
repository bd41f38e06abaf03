"""The published data sets behind the tasks of a run, for the cards of its models."""

from __future__ import annotations

from collections.abc import Mapping

from qbench.checkpoint.card_metadata import Benchmark
from qbench.tasks.contract import Task
from qbench.tasks.declaration import Table


def benchmarks(tasks: Mapping[str, Task]) -> dict[str, Benchmark]:
    """By the name of a task in records; of questions alone, and not of stand-ins.

    tasks: by that name, which is another than the task's own where the data is a stand-in.
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
