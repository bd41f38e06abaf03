"""How a cell was judged in a task: what must be the same before two scores are compared."""

from __future__ import annotations

from qbench.records import Record, TaskSpec

# Of a cell, beside the protocol; a model's folder may hold other weights than a day before.
JUDGED_BY = ("revision", "dtype", "batch_size", "device")
PACKAGES = ("lm_eval", "torch", "transformers")  # whose versions move scores


def protocol(record: Record, task: str) -> TaskSpec | None:
    """How this cell was asked to run that task, or the task of which that is a part."""
    whole: TaskSpec | None = None
    for spec in record.cell.tasks:
        if spec.name == task:
            return spec
        is_part = task.startswith(f"{spec.name}_")
        if is_part and (whole is None or len(spec.name) > len(whole.name)):
            whole = spec
    return whole


def packages_of(record: Record) -> dict[str, str | None]:
    """The versions of PACKAGES that a cell was judged with; None where it does not say."""
    versions = record.environment.get("packages", {})
    return {name: versions.get(name) for name in PACKAGES}


def code_of(record: Record) -> str:
    """A hash of the code that judged a cell; of older records, also of what its tasks declare."""
    return record.cell.evaluation if record.judging is None else record.judging.code


def declared_in(record: Record, task: str) -> str:
    """12 hex digits for what that task declares, or that of which it is a part; empty if unknown.

    Older records do not tell it apart from their code (`code_of`).
    """
    spec = protocol(record, task)
    if record.judging is None or spec is None:
        return ""
    return record.judging.tasks.get(spec.name, "")


def judged_by(record: Record, task: str) -> tuple[object, ...]:
    """What cells must share before their scores in a task are held against each other.

    How they were asked, by which code and packages, on which kind of device; and the revision,
    where they are of one model. What else was asked in the same run is not among it.
    """
    own = [getattr(record.cell, name) for name in JUDGED_BY]
    code = (code_of(record), declared_in(record, task))
    return (protocol(record, task), *own, *code, *packages_of(record).values())


def judged_alike(first: Record, second: Record, task: str) -> bool:
    """Whether `judged_by` of two cells is the same."""
    return judged_by(first, task) == judged_by(second, task)
