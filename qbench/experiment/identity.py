"""What decides the identity of cells: all that could change their numbers, resolved and hashed.

A cell's id is the hash of what is gathered here, of its method with its parameters and source, and
of its scheme (`qbench.experiment.cells.expand`). Cells of one id may differ only in the machine;
its processor and threads change the last digits, and are in the record.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from qbench.environment import pick_dtype
from qbench.errors import ConfigError, QbenchError, reason_of
from qbench.experiment.code_hashes import JUDGING, QUANTIZING, code_hash
from qbench.experiment.grid import Grid
from qbench.experiment.task_identity import task_hash
from qbench.models.identity import Announce, resolved_revision
from qbench.models.source import ModelSource
from qbench.models.tokenizers import require_template
from qbench.quantization import stored_as
from qbench.records import CalibrationSpec, Judging, TaskSpec
from qbench.tasks.contract import Task
from qbench.tasks.data import CALIBRATION, Source
from qbench.tasks.declaration import Declaration
from qbench.tasks.harness import HarnessTask
from qbench.tasks.hub import HubSource
from qbench.tasks.registry import get_task
from qbench.tasks.text import TextTask


@dataclass(frozen=True)
class Identity:
    """What all cells of a grid have in common, but for the model.

    revisions: what exactly is loaded, by the model's name. stored_as: how the author of a model
    quantized it, by its name; None for an unquantized one. tasks: what is asked on this data.
    declared: by their names in cells, what these tasks are (`task_hash`). comparing: the names of
    those that compare with the unquantized model. calibrations: a method that calibrates has a cell
    for each. dtype: in which models are evaluated. quantization, evaluation, batch_size, device: as
    in `Cell`. judging: as in `Record`.
    """

    revisions: Mapping[str, str]
    stored_as: Mapping[str, str | None]
    tasks: tuple[TaskSpec, ...]
    declared: Mapping[str, str]
    calibrations: tuple[CalibrationSpec, ...]
    dtype: str
    quantization: str
    evaluation: str
    judging: Judging
    batch_size: int
    device: str
    comparing: tuple[str, ...] = ()

    @property
    def alone(self) -> tuple[TaskSpec, ...]:
        """The tasks that need no other model beside the one that is judged."""
        return tuple(spec for spec in self.tasks if spec.name not in self.comparing)


def identify(
    grid: Grid,
    models: Mapping[str, ModelSource],
    source: Source,
    device: str,
    announce: Announce,
) -> tuple[Identity, dict[str, Task]]:
    """The identity that a grid has on this data and device, and its tasks by their names in cells.

    announce: is called with a sentence before anything that takes over a second. ConfigError or
    DataError where a task has no such settings or data.
    """
    # Before a task has read anything, which it may keep.
    hashes = {name: task_hash(get_task(name)) for name in grid.task_names}
    asked = ask(grid, source, announce)
    _refuse_too_long(grid, source)
    calibrations = tuple(
        CalibrationSpec(
            data=source.table_name(CALIBRATION),
            sha256=source.sha256(CALIBRATION),
            dtype=pick_dtype("auto", device),
            **sample,
        )
        for sample in grid.calibrations
    )
    if grid.prompts["chat_template"]:
        for model in models.values():
            require_template(model)
    revisions = {name: resolved_revision(model, announce) for name, model in models.items()}
    dtype = pick_dtype(grid.dtype, device)
    specs = tuple(spec for _, spec in asked)
    tasks = {spec.name: task for task, spec in asked}
    declared = {name: hashes[task.name] for name, task in tasks.items()}
    identity = Identity(
        revisions=revisions,
        stored_as={name: stored_as(model) for name, model in models.items()},
        tasks=specs,
        declared=declared,
        calibrations=calibrations,
        dtype=dtype,
        quantization=quantization_hash(),
        evaluation=evaluation_hash(declared),
        judging=judging(declared),
        batch_size=grid.defaults["batch_size"],
        device=device.partition(":")[0],
        comparing=tuple(name for name, task in tasks.items() if task.needs_unquantized),
    )
    return identity, tasks


def quantization_hash() -> str:
    """12 hex digits for the code that applies every method: walk, losses and formats."""
    return code_hash(QUANTIZING)


def evaluation_hash(declared: Mapping[str, str]) -> str:
    """12 hex digits for the code that judges: lm-eval's version, ours, and what tasks declare.

    declared: by the names of tasks, as `task_hash` has it.
    """
    texts = [f"{name} {declared[name]}" for name in sorted(declared)]
    return code_hash(JUDGING, version("lm_eval"), *texts)


def judging(declared: Mapping[str, str]) -> Judging:
    """What `evaluation_hash` holds, task by task: a run may share some of its tasks with another.

    declared: as there.
    """
    own = {name: told[:12] for name, told in declared.items()}
    return Judging(code=evaluation_hash({}), tasks=own)


def ask(
    grid: Grid, source: Source, announce: Announce = lambda text: None
) -> list[tuple[Task, TaskSpec]]:
    """The grid's tasks, and what each asks on this data.

    Tasks of a preset that the data does not have are left out, and so are examples in prompts where
    the data has none; both are announced. ConfigError where a task has no such setting, where the
    data has fewer items, or where two tasks have one name in records.
    """
    asked = []
    for name in _present(grid, source, announce):
        task = get_task(name)
        settings = grid.set.get(name, {})
        options = grid.task_options(task.name, getattr(task, "like", None))
        written = options.pop("max_gen_toks", None)
        shots = options.get("num_fewshot")
        if shots and "num_fewshot" not in settings and not has_examples(task, source):
            options["num_fewshot"] = 0
            announce(
                f"{source.label} has no examples for the prompts of {name}, so that it is asked "
                f"0-shot and not {shots}-shot; --data DIR or --data hub has them"
            )
        spec = _spec(task, source, options)
        if isinstance(task, HarnessTask):
            spec = task.with_prompts(spec, written, **grid.prompts)
        _refuse_meaningless(name, settings, spec)
        _refuse_too_many(task, settings, spec, source)
        asked.append((task, spec))
    _refuse_one_name(asked, source)
    return asked


def _spec(task: Task, source: Source, options: Mapping[str, Any]) -> TaskSpec:
    """What a task asks; ConfigError naming it where its `spec` raises or gives something else."""
    try:
        spec = task.spec(source, **options)
    except QbenchError:
        raise
    except Exception as error:  # a task may be anybody's
        raise ConfigError(
            f"task {task.name!r} cannot say what it asks: {reason_of(error)}; mend its spec"
        ) from error
    if not isinstance(spec, TaskSpec):
        raise ConfigError(
            f"the spec of task {task.name!r} gives a {type(spec).__name__}, and not a TaskSpec"
        )
    return spec


def _present(grid: Grid, source: Source, announce: Announce) -> list[str]:
    """The grid's tasks, without those of its preset that the data does not have, if it has any."""
    absent = []
    for name in grid.task_names:
        task = get_task(name)
        of_preset = grid.tasks is None and name not in grid.set
        if of_preset and isinstance(task, Declaration) and not source.splits(task.table_name):
            absent.append(name)
    present = [name for name in grid.task_names if name not in absent]
    if absent and present:
        announce(
            f"{source.label} has no data for {', '.join(absent)}, so that it is left out; "
            "--data DIR or --data hub has it"
        )
    return present or list(grid.task_names)


def has_examples(task: Task, source: Source) -> bool:
    """Whether the data has examples for a task's prompts; so it is taken for tasks of others."""
    if not isinstance(task, HarnessTask):
        return True
    return task.fewshot_split in source.splits(task.table_name)


def _refuse_one_name(asked: Sequence[tuple[Task, TaskSpec]], source: Source) -> None:
    """ConfigError for two tasks of one name in records: one would take the other's place there."""
    owners: dict[str, str] = {}
    for task, spec in asked:
        other = owners.setdefault(spec.name, task.name)
        if other != task.name:
            raise ConfigError(
                f"tasks {other!r} and {task.name!r} would both be {spec.name!r} in the records of "
                f"{source.label}; ask one of them, or give the one of your own another name"
            )


def _refuse_meaningless(name: str, asked: Mapping[str, Any], spec: TaskSpec) -> None:
    """ConfigError for a setting that the task does not know: it would be left out of the cell."""
    for key, values in asked.items():
        if getattr(spec, key) is None and values != ("all",):
            raise ConfigError(
                f"--set {name}.{key}={values[0]}: the task {name!r} has no {key!r}; leave it out"
            )


def _refuse_too_many(task: Task, asked: Mapping[str, Any], spec: TaskSpec, source: Source) -> None:
    """ConfigError where more items are asked for than the data has, or too long ones."""
    if "length" in asked and _items(task, spec, source) == 0:
        raise ConfigError(
            f"--set {task.name}.length={spec.length} is longer than the text that {source.label} "
            "has for it; give less"
        )
    for key in ("limit", "generate"):
        number = getattr(spec, key)
        if key not in asked or number is None:
            continue
        most = _items(task, spec, source)
        if most is not None and number > most:
            raise ConfigError(
                f"--set {task.name}.{key}={number} is more than the {most} items that "
                f"{source.label} has for it; give at most {most}, or 'all'"
            )


def _refuse_too_long(grid: Grid, source: Source) -> None:
    """ConfigError where a calibration sample is set that is longer than the data's text.

    It is a bound, as for tasks: a token is at least one byte. A text on the hub is not downloaded
    for this.
    """
    if CALIBRATION not in grid.set or isinstance(source, HubSource):
        return
    most = len("\n\n".join(source.text(CALIBRATION)).encode())
    for sample in grid.calibrations:
        samples, length = sample["samples"], sample["length"]
        if samples * length > most:
            raise ConfigError(
                f"--set {CALIBRATION}: {samples} samples of length {length} are more than the "
                f"{most} tokens that {source.label} can have for it; give fewer or shorter ones"
            )


def _items(task: Task, spec: TaskSpec, source: Source) -> int | None:
    """How many items a limit can choose from: rows, those of the largest subject, or windows.

    Of windows it is a bound: a token is at least one byte of the text. None for tasks of others.
    """
    if isinstance(task, HarnessTask):
        rows = source.rows(task.table_name, task.splits[-1])
        if task.subject_column is None:
            return len(rows)
        return max(Counter(rows[task.subject_column][:]).values())
    if isinstance(task, TextTask) and spec.length is not None:
        letters = len("\n\n".join(task.texts(source)).encode())
        return letters // spec.length
    return None
