"""Cells, scores and records: the JSON that a run writes, and the identity of each cell.

All of them are frozen, refuse unknown keys, and survive a JSON round trip. `schema` is the version
of the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import compress
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
)

from qbench.contracts import Scheme

SCHEMA: Literal[1] = 1
Scalar = bool | int | float | str | None
Amount = Annotated[float, Field(ge=0, le=1e15)]  # of bytes, seconds or items, and per second
Bits = Annotated[float, Field(ge=0, le=1e6)]  # per weight
Count = Annotated[int, Field(ge=0, le=10**18)]
Deviation = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # of a score, in its own unit


class _Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True
    )


class _Machine(BaseModel):
    """The entries of an `environment` that are read; it may have others."""

    packages: dict[str, str | None] = {}
    hardware: dict[str, Any] = {}


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


class CalibrationSpec(_Frozen):
    """Which text calibrates a method: `samples` windows of `length` tokens.

    data, sha256: the data set's name and the hash of its content. dtype: of the matrix products of
    the walk; weights and statistics are always float32.
    """

    data: str
    sha256: str
    samples: int
    length: int
    dtype: str

    @property
    def label(self) -> str:
        """`c4:128x512`, for people."""
        return f"{self.data}:{self.samples}x{self.length}"


class TaskSpec(_Frozen):
    """One evaluation: a task, its data and its protocol.

    name: of the task. data, sha256: the data set's name and the hash of its content. limit: number
    of items (windows for text tasks; items per subject for mmlu), None for all. num_fewshot:
    examples in the prompt, None where that has no meaning. length: tokens per window, for text
    tasks. generate: for how many items an answer is generated (gsm8k), None for all. spread: at
    most so many windows of one article, None for consecutive windows. max_gen_toks: tokens that an
    answer may have, None for lm-eval's own number. chat_template: whether prompts are put into the
    model's own template. bos: the token before a prompt: `none`, or the one that the `tokenizer`
    adds; None for the one that the model was trained with.
    """

    name: str
    data: str
    sha256: str
    limit: int | None = None
    num_fewshot: int | None = None
    length: int | None = None
    generate: int | None = None
    spread: int | None = None
    max_gen_toks: int | None = None
    chat_template: bool = False
    bos: Literal["none", "tokenizer"] | None = None

    def facts(self) -> dict[str, Any]:
        """All fields, JSON-able, without newer ones that are at their defaults."""
        return _older(self, ("spread", "max_gen_toks", "chat_template", "bos"))

    @property
    def protocol(self) -> str:
        """8 hex digits; scores of one task can be compared where these are equal."""
        return digest(self.facts())[:8]


class Cell(_Frozen):
    """One point of the grid: a model, a method with its parameters, a scheme, and how it is judged.

    model, revision: the name as typed, and what exactly is loaded (a commit, or a hash of the
    files). source: a hash of the method's source files, so that an edited method is another cell.
    scheme: None for the model as it is. calibration: None where the method needs none. dtype: in
    which the model is evaluated. seed: of the calibration windows; it is also added to a method's
    own seed. evaluation: a hash of the code that judges, ours and lm-eval's. batch_size: items at a
    time, which changes the last digits. device: `cpu` or `cuda`. stored_as: how the author of a
    model quantized it, such as `gptq 4b g128`; None for an unquantized model. recipe: a hash of
    the code that divides bits between layers and quantizes the head, empty where neither is asked.
    quantization: a hash of the code that applies every method and reads quantized models, empty for
    an unquantized model.
    """

    model: str
    revision: str
    method: str
    params: dict[str, Scalar]
    source: str
    scheme: Scheme | None
    calibration: CalibrationSpec | None
    tasks: tuple[TaskSpec, ...]
    dtype: str
    seed: int
    evaluation: str = ""
    batch_size: int | None = None
    device: str = "cpu"
    stored_as: str | None = None
    recipe: str = ""
    quantization: str = ""

    @field_serializer("scheme")
    def _said(self, scheme: Scheme | None) -> dict[str, Any] | None:
        """The scheme without fields that are empty, as older versions wrote it."""
        return None if scheme is None else scheme.facts()

    @property
    def id(self) -> str:
        """12 hex digits of the SHA-256 of the canonical JSON; every file of this cell has them."""
        return digest(self._facts())

    @property
    def artifact(self) -> str:
        """The id of the quantized model, which cells share that differ only in their evaluation.

        On a GPU the calibration computes in the cell's dtype, so there the dtype is part of it.
        """
        of_evaluation = {"tasks", "evaluation", "batch_size"}
        if self.device == "cpu":
            of_evaluation.add("dtype")
        return digest({k: v for k, v in self._facts().items() if k not in of_evaluation})

    def _facts(self) -> dict[str, Any]:
        """All fields, JSON-able; newer ones only if not at their defaults, so that ids stay."""
        younger = ("evaluation", "batch_size", "device", "stored_as", "recipe", "quantization")
        facts = _older(self, younger)
        return facts | {"tasks": [task.facts() for task in self.tasks]}

    @property
    def label(self) -> str:
        """`gptq 3b g64` or `rtn 3b g64 clip=none`, for people."""
        words = [self.method if self.stored_as is None else self.stored_as]
        if self.scheme is not None:
            words.append(str(self.scheme))
        for key, value in sorted(self.params.items()):
            words.append(f"{key}={value}")
        return " ".join(words)


class Score(_Frozen):
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


Spread = tuple[Amount, Amount, Amount]  # the median, and the low and high end of a range


class Product(_Frozen):
    """How long a product with one layer's weight takes, and torch's dense product.

    out, columns: shape of the weight. rows: of x. layers: how many linear layers of the model have
    this shape and format. kernel: the name of the one that computes it. seconds, dense: of the
    packed and of the dense product, measured in turns: median, tenth and ninetieth percentile.
    """

    out: Count
    columns: Count
    rows: Count
    layers: Count
    kernel: str
    seconds: Spread
    dense: Spread


class Decoding(_Frozen):
    """How fast a whole model reads and writes, packed and dense in turns: batch 1, greedy.

    prompt, tokens: how many are read and written. packed, dense: tokens written per second: median,
    least, most. packed_prefill, dense_prefill: tokens read per second. packed_peak_bytes,
    dense_peak_bytes: the peak of memory while it is loaded, reads and writes.
    """

    prompt: Count
    tokens: Count
    packed: Spread
    dense: Spread
    packed_prefill: Spread
    dense_prefill: Spread
    packed_peak_bytes: Count
    dense_peak_bytes: Count


class Latency(_Frozen):
    """How fast the packed model is on the machine where it was timed.

    device: name of the processor or GPU. threads: of the processor, None on a GPU. dtype: of x, and
    of the dense model. layers: number of quantized layers, None in older records. reason: why
    some of the times are missing, None where none is. failed: whether that is a failure, such as a
    process that was killed, and no limit that was asked for or file that was removed.
    """

    device: str
    threads: Count | None
    dtype: str
    products: tuple[Product, ...] = ()
    decoding: Decoding | None = None
    layers: Count | None = None
    reason: str | None = None
    failed: bool = False

    @property
    def place(self) -> str:
        """The device and how it computed, such as `Xeon, 2 threads, bfloat16`."""
        words = [self.device]
        if self.threads is not None:
            words.append(threads_in_words(self.threads))
        return ", ".join([*words, self.dtype])

    @property
    def rows(self) -> tuple[int, ...]:
        """The numbers of rows of x that were timed, ascending."""
        return tuple(sorted({product.rows for product in self.products}))

    def milliseconds(self, rows: int) -> tuple[float, float] | None:
        """Milliseconds of all quantized linear layers, once each: (packed, dense).

        None where these rows were not timed, or not for all layers.
        """
        timed = [product for product in self.products if product.rows == rows]
        whole = self.reason is None or self.decoding is not None  # decoding is timed last
        if self.layers is not None:
            whole = sum(product.layers for product in timed) == self.layers
        if not timed or not whole:
            return None
        packed = sum(1000 * product.layers * product.seconds[0] for product in timed)
        dense = sum(1000 * product.layers * product.dense[0] for product in timed)
        return packed, dense


class Caution(_Frozen):
    """What may be wrong with an evaluation.

    task: its name, None where the caution is about the whole cell. kind: `template`, `strict`,
    `empty`, `cut-off`, `looping`, `cut-prompts`, `bos`, `eos`, `overlap`, `coverage`, `size` or
    `memory`; `lost-items` where a report finds none; where it is about several cells, `length` or
    `indistinct`. text: a sentence.
    """

    kind: str
    task: str | None = None
    text: str


class Record(_Frozen):
    """All that is known about one cell. A failure has a record, too, with `status` and `reason`.

    bits_per_weight: `total`, and by part, measured from the tensors' bytes. bytes_on_disk: of the
    files of weights; in older records, of the whole folder. quantize_peak_bytes: memory at the
    peak, on the GPU where one was used. quantize_watched: whether that includes the copies that the
    watch on a plug-in makes. log: by block, the errors of its layers, and the losses of a method
    that trains. evaluation: by task, its `seconds`, how it was computed and what was unusual
    (`facts` of a task's outcome). environment: see `qbench.environment`. command: the command line
    that reproduces this cell alone. latency: of the packed model, measured when all cells of a run
    are done; None where it was not measured. protocol: `name`, `hash` and `statement` of how the
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
    bits_per_weight: dict[str, Bits] = {}
    bytes_on_disk: Count | None = None
    quantize_seconds: Amount | None = None
    quantize_peak_bytes: Count | None = None
    quantize_watched: bool = False
    evaluate_seconds: Amount | None = None
    log: dict[str, Any] = {}
    evaluation: dict[str, dict[str, Any]] = {}
    environment: Annotated[dict[str, Any], _with(_Machine)] = {}
    command: str = ""
    latency: Latency | None = None
    protocol: Annotated[dict[str, Any], _with(_Protocol)] = {}
    parameters: dict[str, Any] = {}
    coverage: dict[str, Any] = {}
    warnings: tuple[Caution, ...] = ()


def labels(cells: Iterable[Cell]) -> dict[str, str]:
    """The label of each cell, by its id.

    Where cells of a model share one, calibration and seed are appended, as far as these differ:
    `gptq 3b g64 c4:128x512 seed=1`. Cells that differ only in their code still share one.
    """
    alike: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        alike.setdefault((cell.model, cell.label), []).append(cell)
    told = {}
    for (_, label), members in alike.items():
        draws = [
            (cell.calibration.label if cell.calibration else "", f"seed={cell.seed}")
            for cell in members
        ]
        differing = [len(set(column)) > 1 for column in zip(*draws, strict=True)]
        for cell, draw in zip(members, draws, strict=True):
            words = [label, *compress(draw, differing)]
            told[cell.id] = " ".join(word for word in words if word)
    return told


def threads_in_words(count: int) -> str:
    """`1 thread` or `2 threads`."""
    return "1 thread" if count == 1 else f"{count} threads"


def _older(model: BaseModel, younger: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a model, JSON-able, without those of `younger` that are at their defaults."""
    defaults = {name: type(model).model_fields[name].default for name in younger}
    facts = model.model_dump(mode="json")
    return {k: v for k, v in facts.items() if k not in defaults or v != defaults[k]}


def digest(value: Any) -> str:
    """The first 12 hex digits of `canonical_sha256`."""
    return canonical_sha256(value)[:12]


def canonical_sha256(value: Any) -> str:
    """64 hex digits of the SHA-256 of the canonical JSON: sorted keys, no spaces, ASCII."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()
