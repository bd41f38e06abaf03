"""What tells a task from others of its name: the code of a plug-in's task, and what all declare."""

from __future__ import annotations

import copyreg
import hashlib
import json
import sys
from collections.abc import Iterable
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from pydantic import BaseModel

from qbench.errors import ConfigError
from qbench.registry import module_hash
from qbench.tasks.contract import Task
from qbench.tasks.registry import module_of

_TASKS = "qbench.tasks"


def task_hash(task: Task) -> str:
    """64 hex digits for what a task asks, the same in every process, and for a plug-in's source.

    The source is the module that its entry point names, and that of its class. ConfigError where
    the task holds what has no such text, such as an open file.
    """
    kind = type(task)
    modules = [kind.__module__, getattr(task, "__module__", None), module_of(task)]
    if isinstance(task, ModuleType):
        modules.append(task.__name__)
    others = sorted({str(module) for module in modules if module and _is_others(module)})
    try:
        facts = [_named(kind), _facts(task)]
    except (TypeError, RecursionError) as error:
        raise ConfigError(
            f"task {task.name!r} holds what is not the same in every process ({error}), so that "
            "its cells would never be found again; make that in `evaluate`, and let the task hold "
            "plain values"
        ) from None
    sources = [f"{module} {module_hash(module)}" for module in others]
    return hashlib.sha256(json.dumps([*facts, *sources]).encode()).hexdigest()


def _is_others(module: str) -> bool:
    """Whether a module is neither one of our tasks, whose code is hashed, nor Python's own."""
    is_ours = module.startswith(f"{_TASKS}.")
    return not is_ours and module.partition(".")[0] not in sys.stdlib_module_names


def _facts(value: Any) -> Any:
    """A value in what JSON has; TypeError or RecursionError where that cannot be.

    Sets are sorted. Functions, classes and modules are their names, and other objects what copying
    them takes.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": repr(value)}  # JSON has neither infinity nor NaN
    if type(value) is bytes:
        return {"bytes": value.hex()}
    if type(value) in (list, tuple):
        return [_facts(item) for item in value]
    if type(value) is dict:
        return {"items": _pairs(value.items())}
    if isinstance(value, (set, frozenset)):
        return {"set": sorted((_facts(item) for item in value), key=json.dumps)}
    if isinstance(value, (type, FunctionType, BuiltinFunctionType, ModuleType)):
        return {"name": _named(value)}
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        own = fields | (value.model_extra or {}) | (value.__pydantic_private__ or {})
        return {"model": [_named(type(value)), _pairs(own.items())]}
    reduce = copyreg.dispatch_table.get(type(value))
    made = value.__reduce_ex__(4) if reduce is None else reduce(value)
    if isinstance(made, str):
        return {"name": [type(value).__module__, made]}
    parts = [*made[:3], *(None if items is None else list(items) for items in made[3:5])]
    return {"made": [_facts(part) for part in parts]}


def _pairs(items: Iterable[tuple[Any, Any]]) -> list[Any]:
    return [[_facts(key), _facts(item)] for key, item in items]


def _named(value: Any) -> str:
    if isinstance(value, ModuleType):
        return value.__name__
    return f"{value.__module__}.{value.__qualname__}"
