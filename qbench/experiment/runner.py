"""From a plan to records: quantize each artifact once, evaluate each cell, one record at a time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from qbench.calibration.walk import Progress
from qbench.calibration.windows import calibration_windows
from qbench.checkpoint.folder import add_scores, bytes_on_disk, is_checkpoint
from qbench.contracts import Scheme, verb_of
from qbench.environment import environment, peak_memory, reset_peak_memory
from qbench.errors import QbenchError, StoreError
from qbench.experiment.cells import cell_command
from qbench.experiment.plan import Plan
from qbench.experiment.store import Store
from qbench.models.loading import load_config, load_model
from qbench.models.source import ModelSource
from qbench.quantization import QuantizedModel, load, quantize
from qbench.records import Cell, Record, Score, TaskSpec
from qbench.registry import get_method
from qbench.tasks.contract import Context, Task, Unquantized
from qbench.tasks.data import CALIBRATION


class View(Protocol):
    """Who is told what happens."""

    def begin(self, cell: Cell, position: int, cells: int) -> None:
        """A cell starts."""

    def progress(self, fraction: float, text: str) -> None:
        """Part of the present cell is done, 0..1."""

    def scored(self, cell: Cell, scores: Sequence[Score]) -> None:
        """A task of the present cell is done."""

    def finish(self, record: Record) -> None:
        """A cell is done, and its record written."""


def run(plan: Plan, store: Store, view: View) -> list[Record]:
    """Work through the cells without an `ok` record. A failing cell is recorded, and others go on.

    Raises StoreError where results can no longer be written; what was written stays, and the same
    call resumes.
    """
    done = {record.id: record for record in store.read_records()[0] if record.status == "ok"}
    machine = environment()
    for position, cell in enumerate(plan.cells, 1):
        if cell.id in done:
            continue
        view.begin(cell, position, len(plan.cells))
        record = _Worker(plan, store, view, cell).record(machine)
        store.write_record(record)
        done[cell.id] = record
        view.finish(record)
    store.drop_references()
    return [done[cell.id] for cell in plan.cells]


# What a model, a method or a task raises where it fails; the cell is recorded as failed.
FAILURES = (RuntimeError, ValueError, ArithmeticError, KeyError, TypeError, IndexError, OSError)


@dataclass
class _Worker:
    """One cell at work.

    facts: fields of its record, as they become known. tokens: which tokens calibrated.
    """

    plan: Plan
    store: Store
    view: View
    cell: Cell
    facts: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)

    def record(self, machine: dict[str, Any]) -> Record:
        """Quantize, evaluate, say what happened; only StoreError and interruption pass through."""
        status: Literal["ok", "failed"] = "ok"
        reason: str | None = None
        try:
            quantized = self._quantized()
            started = time.perf_counter()
            self.facts["scores"] = self._evaluate(quantized.model, quantized.tokenizer)
            self.facts["evaluate_seconds"] = time.perf_counter() - started
        except StoreError:
            raise  # results can no longer be written: nothing can be recorded
        except QbenchError as error:
            status = "failed"
            reason = str(error)
        except FAILURES as error:
            status = "failed"
            reason = f"{type(error).__name__}: {error}"
        record = Record(
            id=self.cell.id,
            cell=self.cell,
            status=status,
            reason=reason,
            environment=self._environment(machine),
            command=cell_command(self.plan.grid, self.cell),
            **self.facts,
        )
        # The card of the quantized model shows its scores; the unquantized one has no artifact.
        if status == "ok" and self.cell.scheme is not None:
            add_scores(self.store.artifact(self.cell), record)
        return record

    def _environment(self, machine: dict[str, Any]) -> dict[str, Any]:
        """The machine, and what of the run is not in the cell."""
        protocol = [spec.model_dump(mode="json") for spec in self.cell.tasks]
        of_run = {
            "data": self.plan.source.label,
            "seed": self.cell.seed,
            "device": self.plan.device,
            "protocol": hashlib.sha256(repr(protocol).encode()).hexdigest()[:12],
        }
        return machine | of_run | self.tokens

    def _quantized(self) -> QuantizedModel:
        """The model to evaluate, always as read back from disk; quantized first where need be."""
        cell = self.cell
        source = self.plan.sources[cell.model]
        if cell.scheme is None:
            model, tokenizer = load_model(source, cell.dtype)
            stored = _stored_bits(source, cell.dtype)
            self.facts["bits_per_weight"] = {"total": stored, "weight": stored}
            self.facts["quantize_seconds"] = 0.0
            return QuantizedModel(model, tokenizer, {}, {})
        folder = self.store.artifact(cell)
        if not is_checkpoint(folder):
            self._quantize(source, cell.scheme)
        quantized = load(folder, cell.dtype, packed=False)
        costs = quantized.manifest["costs"]
        self.facts["bits_per_weight"] = quantized.bits_per_weight
        self.facts["bytes_on_disk"] = bytes_on_disk(folder)
        self.facts["quantize_seconds"] = costs["seconds"]
        self.facts["quantize_peak_bytes"] = costs["peak_bytes"]
        self.facts["log"] = quantized.log
        if "calibration" in quantized.manifest:
            self.tokens["calibration_tokens"] = quantized.manifest["calibration"]["sha256"]
        return quantized

    def _quantize(self, source: ModelSource, scheme: Scheme) -> None:
        """Quantize the model and save the artifact."""
        cell = self.cell
        device = self.plan.device
        method = get_method(cell.method, **cell.params)
        dtype = "float32" if device == "cpu" else cell.dtype
        model, tokenizer = load_model(source, dtype)
        tokens: Tensor | None = None
        if cell.calibration is not None and verb_of(method) != "quantize_weight":
            texts = self.plan.source.text(CALIBRATION)
            tokens = calibration_windows(
                texts, tokenizer, cell.calibration.samples, cell.calibration.length, cell.seed
            )
        reset_peak_memory(device)
        started = time.perf_counter()
        quantized = quantize(
            model,
            method,
            scheme,
            tokens,
            tokenizer=tokenizer,
            device=device,
            dtype=cell.calibration.dtype if cell.calibration else "float32",
            progress=self._span(0.0, self.plan.estimates[cell.id].quantize_share, "quantizing"),
        )
        seconds = time.perf_counter() - started
        quantized.manifest["costs"] = {"seconds": seconds, "peak_bytes": peak_memory(device)}
        quantized.save(self.store.artifact(cell))

    def _evaluate(self, model: Any, tokenizer: Any) -> tuple[Score, ...]:
        """Scores of every task; the samples are written on the way.

        What tasks need of the unquantized model they prepare first, so that tasks that share a pass
        over the model under test find it, whichever of them is evaluated first.
        """
        model.to(self.plan.device)
        torch.manual_seed(self.cell.seed)
        context = Context(model, tokenizer, self.plan.source)
        context.unquantized = Unquantized(
            load=partial(self._unquantized, model, tokenizer),
            file=partial(self.store.reference, self.cell),
        )
        specs = self.cell.tasks
        preparing = [spec for spec in specs if self.plan.tasks[spec.name].needs_unquantized]
        spans = self._spans([*preparing, *specs])
        for spec in preparing:
            task = self.plan.tasks[spec.name]
            task.prepare(self._for_task(context, task, next(spans)), spec)
        scores: list[Score] = []
        for spec in specs:
            task = self.plan.tasks[spec.name]
            outcome = task.evaluate(self._for_task(context, task, next(spans)), spec)
            path = self.store.write_samples(self.cell, spec.name, outcome.samples)
            scores += [score.model_copy(update={"samples": path}) for score in outcome.scores]
            self.view.scored(self.cell, outcome.scores)
        return tuple(scores)

    def _for_task(self, context: Context, task: Task, progress: Progress) -> Context:
        """The cell's context with a task's own batch size and progress; the cache is shared."""
        batch_size = task.batch_size or self.plan.grid.defaults["batch_size"]
        return replace(context, batch_size=batch_size, progress=progress)

    def _unquantized(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        """The model before quantization: the one under test where it is not quantized."""
        if self.cell.method == "none":
            return model, tokenizer
        model, tokenizer = load_model(self.plan.sources[self.cell.model], self.cell.dtype)
        return model.to(self.plan.device), tokenizer

    def _spans(self, specs: Sequence[TaskSpec]) -> Iterator[Progress]:
        """What follows quantizing of the cell's progress, divided by the specs' estimated times."""
        estimated = self.plan.estimates[self.cell.id]
        total = sum(estimated.tasks[spec.name] for spec in specs)
        low = estimated.quantize_share
        for spec in specs:
            share = estimated.tasks[spec.name]
            high = low + (1 - estimated.quantize_share) * share / total
            yield self._span(low, high, spec.name)
            low = high

    def _span(self, low: float, high: float, name: str) -> Progress:
        """A callback for a part of the work, whose fraction 0..1 is `low`..`high` of the cell's."""

        def report(fraction: float, text: str) -> None:
            self.view.progress(low + (high - low) * fraction, text or name)

        return report


def _stored_bits(source: ModelSource, dtype: str) -> float:
    """Bits per weight of the unquantized model: those of its own dtype."""
    stored = getattr(load_config(source), "dtype", None) or dtype
    if isinstance(stored, str):  # a config's name of a dtype, such as "bfloat16"
        stored = getattr(torch, stored)
    return float(torch.finfo(stored).bits)
