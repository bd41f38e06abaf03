"""All tasks by name: the YAML files of this folder, the text tasks, and entry points of the group `qbench.tasks`."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from qbench.errors import ConfigError, unknown_name
from qbench.tasks.contract import Task
from qbench.tasks.harness import read_task

GROUP = "qbench.tasks"


def get_task(name: str) -> Task:
    """The task of that name; ConfigError with the nearest known name, or with why a plug-in is broken."""
    tasks, broken = _load()
    if name in tasks:
        return tasks[name]
    if name in broken:
        raise ConfigError(f"task {name!r} cannot be used: {broken[name]}")
    raise ConfigError(unknown_name("task", name, tasks))


def all_tasks() -> dict[str, Task]:
    """Every usable task by name."""
    return dict(_load()[0])


def broken_tasks() -> dict[str, str]:
    """Plug-ins that cannot be used: entry point name -> reason."""
    return dict(_load()[1])


@lru_cache(maxsize=1)
def _load() -> tuple[dict[str, Task], dict[str, str]]:
    from qbench.tasks.window_pass import Divergence, Perplexity

    own: list[Task] = [Perplexity(), Divergence()]
    own += [read_task(path) for path in sorted(Path(__file__).parent.glob("*.yaml"))]
    tasks = {task.name: task for task in own}
    broken: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        try:
            task = point.load()
            if not isinstance(task, Task):
                raise TypeError(
                    f"{point.value} is no task: it needs name, kind, describe, spec and evaluate"
                )
            if task.name in tasks:
                raise ValueError(f"the name {task.name!r} is taken")
        except Exception as error:  # whatever a plug-in raises, the others still work
            broken[point.name] = f"{type(error).__name__}: {error}"
        else:
            tasks[task.name] = task
    return dict(sorted(tasks.items())), broken
