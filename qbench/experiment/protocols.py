"""A run's protocol: all settings of how it judges, with a hash and a name.

The cells have these settings, and so their ids do: the tasks, the code that judges, batch size,
dtype and device. The protocol puts them together for people to compare, under the name of the
preset if they are as the preset declares.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from qbench.errors import ConfigError
from qbench.experiment.grid import TRAINED, Grid
from qbench.experiment.identity import Identity
from qbench.records import digest
from qbench.tasks.contract import Task
from qbench.tasks.harness import HarnessTask

PACKAGES = ("lm_eval", "torch", "transformers", "tokenizers", "datasets")


def protocol_of(grid: Grid, identity: Identity, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """`name`, `hash` and `statement` of how a grid judges, JSON-able.

    The statement has every setting, also those at their defaults. The hash is that of the
    statement. tasks: by their names in the specs.
    """
    asked = {}
    for spec in identity.tasks:
        task = tasks[spec.name]
        settings = spec.model_dump(mode="json", exclude={"name"})
        asked[spec.name] = settings | {
            "bos": TRAINED if spec.bos is None else spec.bos,
            "protocol": spec.protocol,
            "items": items_in_words(task, spec.limit, spec.spread),
            "scores": [f"{score.metric}/{score.filter}" for score in task.scores],
            "batch_size": task.batch_size or identity.batch_size,
        }
    samples = [sample.model_dump(mode="json") for sample in identity.calibrations]
    statement: dict[str, Any] = {
        "tasks": asked,
        "calibration": samples[0] if len(samples) == 1 else samples,
        "evaluation": identity.evaluation,
        "dtype": identity.dtype,
        "device": identity.device,
        "versions": versions(),
        "scores": grid.defaults.get("scores", {}),
    }
    name = named(grid, identity, tasks)
    return {"name": name, "hash": digest(statement), "statement": statement}


def named(grid: Grid, identity: Identity, tasks: Mapping[str, Task]) -> str:
    """The preset's name; with `, in part` where tasks are left out, `, changed` where flags differ.

    Or where the data does not allow what the preset asks.
    """
    declared = grid.model_copy(update={"set": {}, "chat_template": None, "bos": None})
    of_preset = grid.defaults["tasks"]
    parts = set()
    for spec in identity.tasks:
        task = tasks[spec.name]
        parts.add(task.name)
        wanted = declared.task_options(task.name)
        if isinstance(task, HarnessTask):
            wanted |= declared.prompts
        differs = any(getattr(spec, key) != value for key, value in wanted.items())
        added = set(grid.set.get(task.name, {})) - wanted.keys()
        if task.name not in of_preset or differs or added:
            return f"{grid.preset}, changed"
    if grid.calibrations != declared.calibrations:
        return f"{grid.preset}, changed"
    return str(grid.preset) if parts == set(of_preset) else f"{grid.preset}, in part"


def items_in_words(task: Task, limit: int | None, spread: int | None) -> str:
    """Which items of a task's data are asked."""
    if task.kind == "text":
        if spread is not None:
            return f"at most {spread} windows of an article, drawn by a fixed seed"
        return "consecutive windows of the joined text, from its beginning"
    if limit is None:
        return "all"
    if task.has_subjects:
        return f"the first {limit} of each subject"
    if task.kind == "generation":
        return f"the first {limit}"
    return f"the first {limit} of a shuffle by a fixed seed, in the order of the file"


def versions() -> dict[str, str]:
    """Of the packages that judge."""
    return {name: version(name) for name in PACKAGES}


def require_versions(grid: Grid) -> None:
    """ConfigError where a package is of another version than the preset is defined with."""
    for name, wanted in grid.defaults.get("versions", {}).items():
        try:
            present = version(name)
        except PackageNotFoundError:
            present = "not installed"
        if present != wanted:
            raise ConfigError(
                f"the protocol {grid.preset!r} is defined with {name} {wanted}, and the version "
                f"here is {present}; install that version, or take another preset"
            )
