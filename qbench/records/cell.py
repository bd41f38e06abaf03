"""A cell of the grid, what calibrates and judges it, and its identity."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from itertools import compress
from typing import Any, Literal

from pydantic import BaseModel, field_serializer

from qbench.contracts import Scheme
from qbench.records.frozen import Frozen

Scalar = bool | int | float | str | None


class CalibrationSpec(Frozen):
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


class TaskSpec(Frozen):
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


class Cell(Frozen):
    """One point of the grid: a model, a method with its parameters, a scheme, and how it is judged.

    model, revision: the name as typed, and what exactly is loaded (a commit, or a hash of the
    files). source: a hash of the method's source files, so that an edited method is another cell.
    scheme: None for the model as it is. calibration: None where the method needs none. dtype: in
    which the model is evaluated. seed: of the calibration windows; it is also added to a method's
    own seed. evaluation: a hash of the code that judges, ours and lm-eval's. batch_size: items at a
    time, which changes the last digits. device: `cpu` or `cuda`. stored_as: how the author of the
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
    def made_by(self) -> str:
        """The method, or how the author quantized a model that is judged as it is."""
        return self.method if self.scheme or self.stored_as is None else self.stored_as

    @property
    def label(self) -> str:
        """`gptq 3b g64` or `rtn 3b g64 clip=none`, for people."""
        words = [self.made_by]
        if self.scheme is not None:
            words.append(str(self.scheme))
        for key, value in sorted(self.params.items()):
            words.append(f"{key}={value}")
        return " ".join(words)


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
