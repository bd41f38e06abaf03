"""Scores and records: the JSON that a run writes. `schema` is the version of the file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from qbench.records.cell import Cell
from qbench.records.frozen import Amount, Bits, Count, Deviation, Frozen
from qbench.records.latency import Latency

SCHEMA: Literal[1] = 1


class _Machine(BaseModel):
    """The entries of an `environment` that are read; it may have others."""

    packages: dict[str, str | None] = Field(default_factory=dict)
    hardware: dict[str, Any] = Field(default_factory=dict)


class _Protocol(BaseModel):
    """The entries of a `protocol` that are read; it may have others."""

    name: str = ""
    hash: str = ""


def _with(model: type[BaseModel]) -> AfterValidator:
    """A validator: facts stay as they are; ValueError where an entry does not fit the model."""

    def checked(facts: dict[str, Any]) -> dict[str, Any]:
        try:
            model.model_validate(facts)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}") from None
        return facts

    return AfterValidator(checked)


class Score(Frozen):
    """One metric of one task.

    filter: the filter of lm-eval that extracts the answers. value, stderr: in the metric's own
    unit. degrees: the degrees of freedom of the standard error; None where there is none, and in
    older records. n: number of items. samples: the file with a row for each item, relative to the
    run's folder. suspicion: why the value may say nothing about the model, None where it looks as
    usual. low, high: the 95 % interval of a share of right answers (Wilson), which is also right
    near 0 and 1.
    """

    task: str
    metric: str
    filter: str = "none"
    value: Annotated[float, Field(allow_inf_nan=False)]
    stderr: Deviation | None
    degrees: Deviation | None = None
    n: Count
    higher_is_better: bool
    samples: str | None = None
    suspicion: str | None = None
    low: Deviation | None = None
    high: Deviation | None = None


class Judging(Frozen):
    """Which code judged a cell, apart from the packages of its environment.

    code: a hash of our code that judges and of lm-eval's version. tasks: by task, 12 hex digits for
    what it declares, and of a plug-in for its source.
    """

    code: str
    tasks: dict[str, str] = Field(default_factory=dict)


class Caution(Frozen):
    """What may be wrong with an evaluation.

    task: its name, None where the caution is about the whole cell. kind: `template`, `strict`,
    `empty`, `cut-off`, `looping`, `cut-prompts`, `bos`, `eos`, `overlap`, `coverage`, `size`,
    `memory` or `no-mean`; `lost-items` where a report finds none; where it is about several cells,
    `length` or `indistinct`. text: a sentence.
    """

    kind: str
    task: str | None = None
    text: str


class Record(Frozen):
    """All that is known about one cell. A failure has a record, too, with `status` and `reason`.

    bits_per_weight: `total`, and by part, measured from the tensors' bytes. bytes_on_disk: of the
    files of weights; in older records, of the whole folder. quantize_peak_bytes: memory at the
    peak, on the GPU where one was used. quantize_watched: whether that includes the copies that the
    watch on a plug-in makes. log: by block, the errors of its layers, and the losses of a method
    that trains. evaluation: by task, its `seconds`, how it was computed and what was unusual
    (`facts` of a task's outcome). environment: see `qbench.environment`. command: the command line
    that reproduces this cell alone. latency: of the packed model, measured when all cells of a run
    are done; None where it was not measured. judging: of which `Cell.evaluation` is one hash, for
    all tasks of the run; None in older records. protocol: `name`, `hash` and `statement` of how the
    run judges (`qbench.experiment.protocols`). parameters: all of the method's, also those at their
    defaults. coverage: which linear layers were quantized (`qbench.experiment.coverage`). warnings:
    what may be wrong with the evaluation.
    """

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    id: str
    cell: Cell
    status: Literal["ok", "failed", "skipped"]
    reason: str | None = None
    scores: tuple[Score, ...] = ()
    bits_per_weight: dict[str, Bits] = Field(default_factory=dict)
    bytes_on_disk: Count | None = None
    quantize_seconds: Amount | None = None
    quantize_peak_bytes: Count | None = None
    quantize_watched: bool = False
    evaluate_seconds: Amount | None = None
    log: dict[str, Any] = Field(default_factory=dict)
    evaluation: dict[str, dict[str, Any]] = Field(default_factory=dict)
    environment: Annotated[dict[str, Any], _with(_Machine)] = Field(default_factory=dict)
    command: str = ""
    latency: Latency | None = None
    judging: Judging | None = None
    protocol: Annotated[dict[str, Any], _with(_Protocol)] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    coverage: dict[str, Any] = Field(default_factory=dict)
    warnings: tuple[Caution, ...] = ()
