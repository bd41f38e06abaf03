"""All tasks by name: of this folder, of entry points of `qbench.tasks`, and of loaded files.

This imports neither torch nor lm-eval, so that a report and a plan can ask what a task declares.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path

from qbench.errors import ConfigError, require_plain_name, unknown_name
from qbench.files.ordinary import is_file
from qbench.tasks.contract import Task
from qbench.tasks.declaration import DeclaredScore, Nature, Table, Unit
from qbench.tasks.harness import read_task

GROUP = "qbench.tasks"
_loaded: dict[Path, Task] = {}  # what `load_task_file` has added


def get_task(name: str) -> Task:
    """The task of that name.

    ConfigError with the nearest name where there is none, or with the reason why it is broken.
    """
    tasks = all_tasks()
    if name in tasks:
        return tasks[name]
    broken = broken_tasks()
    if name in broken:
        raise ConfigError(f"task {name!r} cannot be used: {broken[name]}")
    raise ConfigError(unknown_name("task", name, tasks))


def all_tasks() -> dict[str, Task]:
    """Every usable task by name, sorted."""
    tasks = dict(_installed()[0])
    for task in _loaded.values():
        tasks[task.name] = task
    return dict(sorted(tasks.items()))


def broken_tasks() -> dict[str, str]:
    """Plug-ins that cannot be used: entry point name -> reason."""
    return dict(_installed()[1])


def ordered_tasks() -> list[Task]:
    """Every usable task, in the order of reports."""
    return sorted(all_tasks().values(), key=lambda task: (task.order, task.name))


def task_tables() -> dict[str, Table]:
    """The data sets that tasks declare, by the task's name, in the order of reports."""
    tables = {}
    for task in ordered_tasks():
        if isinstance(task.table, Table):
            tables[task.name] = task.table
    return tables


def unit_of(task: str, metric: str) -> Unit:
    """The unit that a task declares for its metric: `%` for a share, empty for a plain number.

    task: as records name it. Empty, too, where the task is not there or does not declare it.
    """
    declared = declared_score(task, metric)
    return "" if declared is None else declared.unit


def nature_of(task: str, metric: str) -> Nature:
    """The nature that a task declares for its metric; `plain` where it is not there."""
    declared = declared_score(task, metric)
    return "plain" if declared is None else declared.nature


@lru_cache(maxsize=4096)
def declared_score(task: str, metric: str) -> DeclaredScore | None:
    """What a task declares of its metric under any filter; None where neither is known.

    task: as records name it: on real data, on the embedded data, or a part of a task.
    """
    from qbench.tasks.mini_source import record_names  # which asks for `task_tables`

    whole: tuple[str, Task] | None = None
    for known in (*_installed()[0].values(), *_loaded.values()):
        for name in record_names(known.name):
            is_part = known.has_subjects and task.startswith(f"{name}_")
            if task == name:
                return _score(known, metric)
            if is_part and (whole is None or len(name) > len(whole[0])):
                whole = (name, known)
    return None if whole is None else _score(whole[1], metric)


def _score(task: Task, metric: str) -> DeclaredScore | None:
    return next((score for score in task.scores if score.metric == metric), None)


def module_of(task: Task) -> str | None:
    """The module that the entry point of a task names; None of our own, and of files."""
    tasks, _, modules = _installed()
    return modules.get(task.name) if tasks.get(task.name) is task else None


def load_task_file(path: Path) -> str:
    """Register the task of a YAML file; returns its name. Loading a file again reads it again.

    ConfigError where the file is absent or describes no task, where the task's name is taken, or
    where it is not a plain name.
    """
    if not is_file(path):
        raise ConfigError(f"task file {str(path)!r} is not a file; give a YAML file with a task")
    task = read_task(path)
    require_plain_name(f"the task of {str(path)!r}", task.name)
    place = path.resolve()
    others = _installed()[0] | {t.name: t for other, t in _loaded.items() if other != place}
    if task.name in others:
        raise ConfigError(
            f"task file {str(path)!r} defines task {task.name!r}, which exists; choose another name"
        )
    _loaded[place] = task
    declared_score.cache_clear()
    return task.name


@lru_cache(maxsize=1)
def _installed() -> tuple[dict[str, Task], dict[str, str], dict[str, str]]:
    """The tasks of this folder and of entry points by name, why others cannot be used, and the
    modules that the entry points of tasks name.
    """
    tasks = {task.name: task for task in _own_tasks()}
    broken: dict[str, str] = {}
    modules: dict[str, str] = {}
    for point in entry_points(group=GROUP):
        try:
            task = point.load()
            if isinstance(task, type):
                raise TypeError(f"{point.value} is a class; give an object of it")
            if not isinstance(task, Task):
                raise TypeError(
                    f"{point.value} is no task: it needs name, kind, describe, spec and evaluate, "
                    "and the other facts of qbench.tasks.contract.Task"
                )
            require_plain_name(point.value, task.name)
            task.describe()  # for `qbench list tasks`, which must not fail of it
            if task.name in tasks:
                raise ValueError(f"the name {task.name!r} is taken")
        except Exception as error:  # whatever a plug-in raises, the others still work
            broken[point.name] = f"{type(error).__name__}: {error}"
        else:
            tasks[task.name] = task
            modules[task.name] = point.value.partition(":")[0].strip()
    return tasks, broken, modules


def _own_tasks() -> list[Task]:
    from qbench.tasks.divergence import divergences
    from qbench.tasks.perplexity import perplexities

    own: list[Task] = [*perplexities(), *divergences()]
    for path in sorted(Path(__file__).parent.glob("*.yaml")):
        own.append(read_task(path))
    return own
