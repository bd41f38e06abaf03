"""From a plan to records: quantize each artifact once, evaluate each cell, write one record at a time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from qbench.calibration.windows import calibration_windows, windows
from qbench.checkpoint import folder as checkpoint
from qbench.contracts import Scheme, verb_of
from qbench.environment import environment, peak_memory, pick_device, pick_dtype, reset_peak_memory
from qbench.errors import QbenchError, StoreError
from qbench.experiment.estimate import Estimate, estimate, measure_rates
from qbench.experiment.grid import Grid, cell_command, expand
from qbench.experiment.store import Store
from qbench.models.source import (
    ModelSource,
    find_model,
    load_config,
    load_model,
    load_skeleton,
    resolved_revision,
)
from qbench.quantization import QuantizedModel, check_layers, load, quantize
from qbench.records import CalibrationSpec, Cell, Record, Score, TaskSpec
from qbench.registry import get_method, load_plugin, method_class
from qbench.tasks.contract import Context, Task
from qbench.tasks.data import Source, chosen, open_source
from qbench.tasks.registry import get_task
from qbench.tasks.window_pass import ReferenceLogits


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


@dataclass
class Plan:
    """All that is fixed before any work: the cells, where their models and data are, and what they will cost."""

    grid: Grid
    cells: tuple[Cell, ...]
    sources: dict[str, ModelSource]
    source: Source
    tasks: dict[str, Task]
    device: str
    estimates: dict[str, Estimate] = field(default_factory=dict)


def make_plan(grid: Grid) -> Plan:
    """Resolve models, data and tasks, and check every cell, before any work.

    Raises ConfigError, ModelError or DataError.
    """
    for path in grid.plugin:
        load_plugin(path)
    source = open_source(grid.data)
    grid = grid.model_copy(
        update={"data": chosen(grid.data)}
    )  # so that the recorded command says it
    tasks = [get_task(name) for name in grid.task_names]
    specs = [task.spec(source, **grid.task_options(task.name)) for task in tasks]
    for name, _ in grid.variants:
        method_class(name)
    sources = {name: find_model(name) for name in grid.model}
    device = pick_device(grid.device)
    calibration = CalibrationSpec(
        data=source.table_name("calibration"),
        sha256=source.sha256("calibration"),
        dtype=pick_dtype("auto", device),
        **grid.calibration,
    )
    cells = expand(
        grid,
        {name: resolved_revision(found) for name, found in sources.items()},
        specs,
        calibration,
        pick_dtype(grid.dtype, device),
    )
    named = {spec.name: task for spec, task in zip(specs, tasks, strict=True)}
    plan = Plan(grid, cells, sources, source, named, device)
    skeletons = {name: load_skeleton(found) for name, found in sources.items()}
    rates = {
        name: measure_rates(skeleton, device, cells[0].dtype)
        for name, skeleton in skeletons.items()
    }
    for cell in cells:
        if cell.scheme is not None:
            check_layers(skeletons[cell.model], get_method(cell.method, **cell.params), cell.scheme)
        plan.estimates[cell.id] = estimate(cell, rates[cell.model])
    return plan


def run(plan: Plan, store: Store, view: View) -> list[Record]:
    """Work through the cells that have no `ok` record yet. A failing cell is recorded and the grid goes on.

    Raises StoreError where results can no longer be written; what was written stays, and the same
    call resumes.
    """
    done = {record.id: record for record in store.read_records()[0] if record.status == "ok"}
    found = environment()
    for position, cell in enumerate(plan.cells, 1):
        if cell.id in done:
            continue
        view.begin(cell, position, len(plan.cells))
        record = _Worker(plan, store, view, cell).record(found)
        store.write_record(record)
        done[cell.id] = record
        view.finish(record)
    store.drop_references()
    return [done[cell.id] for cell in plan.cells]


@dataclass
class _Worker:
    """One cell at work."""

    plan: Plan
    store: Store
    view: View
    cell: Cell
    facts: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Any] = field(default_factory=dict)

    def record(self, found: dict[str, Any]) -> Record:
        """Quantize, evaluate, and say what happened; only StoreError and interruption pass through."""
        status: Literal["ok", "failed"] = "ok"
        reason: str | None = None
        try:
            quantized = self._quantized()
            started = time.perf_counter()
            scores = self._evaluate(quantized.model, quantized.tokenizer)
            self.facts |= {"scores": scores, "evaluate_seconds": time.perf_counter() - started}
        except StoreError:
            raise
        except QbenchError as error:
            status, reason = "failed", str(error)
        except (
            RuntimeError,
            ValueError,
            ArithmeticError,
            KeyError,
            TypeError,
            IndexError,
            OSError,
        ) as error:
            status, reason = "failed", f"{type(error).__name__}: {error}"
        protocol = [spec.model_dump(mode="json") for spec in self.cell.tasks]
        record = Record(
            id=self.cell.id,
            cell=self.cell,
            status=status,
            reason=reason,
            environment=found
            | {"data": self.plan.source.label, "seed": self.cell.seed, "device": self.plan.device}
            | {"protocol": hashlib.sha256(repr(protocol).encode()).hexdigest()[:12]}
            | self.tokens,
            command=cell_command(self.plan.grid, self.cell),
            **self.facts,
        )
        if status == "ok" and self.cell.scheme is not None:
            checkpoint.add_scores(self.store.artifact(self.cell), record)
        return record

    def _quantized(self) -> QuantizedModel:
        """The model to evaluate, always as read back from disk; quantized first where that has not been done."""
        cell, source = self.cell, self.plan.sources[self.cell.model]
        if cell.scheme is None:
            model, tokenizer = load_model(source, cell.dtype)
            stored = _stored_bits(source, cell.dtype)
            self.facts |= {
                "bits_per_weight": {"total": stored, "weight": stored},
                "quantize_seconds": 0.0,
            }
            return QuantizedModel(model, tokenizer, {}, {})
        folder = self.store.artifact(cell)
        if not checkpoint.is_quantized(folder):
            self._quantize(source, cell.scheme)
        quantized = load(folder, cell.dtype, packed=False)
        self.facts |= {
            "bits_per_weight": quantized.bits_per_weight,
            "bytes_on_disk": checkpoint.bytes_on_disk(folder),
        }
        costs = quantized.manifest["costs"]
        self.facts |= {
            "quantize_seconds": costs["seconds"],
            "quantize_peak_bytes": costs["peak_bytes"],
        }
        self.facts |= {"log": quantized.log}
        if "calibration" in quantized.manifest:
            self.tokens |= {"calibration_tokens": quantized.manifest["calibration"]["sha256"]}
        return quantized

    def _quantize(self, source: ModelSource, scheme: Scheme) -> None:
        cell, device = self.cell, self.plan.device
        method = get_method(cell.method, **cell.params)
        model, tokenizer = load_model(source, "float32" if device == "cpu" else cell.dtype)
        tokens: Tensor | None = None
        if cell.calibration is not None and verb_of(method) != "quantize_weight":
            texts = self.plan.source.text("calibration")
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
            progress=self._part(0.0, self.plan.estimates[cell.id].quantize_share, "quantizing"),
        )
        seconds = time.perf_counter() - started
        quantized.manifest["costs"] = {"seconds": seconds, "peak_bytes": peak_memory(device)}
        quantized.save(self.store.artifact(cell))

    def _evaluate(self, model: Any, tokenizer: Any) -> tuple[Score, ...]:
        model.to(self.plan.device)
        torch.manual_seed(self.cell.seed)
        context = Context(
            model, tokenizer, self.plan.source, batch_size=self.plan.grid.defaults["batch_size"]
        )
        scores: list[Score] = []
        weights = [
            self.plan.estimates[self.cell.id].tasks.get(spec.name, 1.0) for spec in self.cell.tasks
        ]
        begin = self.plan.estimates[self.cell.id].quantize_share
        for i, spec in enumerate(self.cell.tasks):
            task = self.plan.tasks[spec.name]
            low = begin + (1 - begin) * sum(weights[:i]) / sum(weights)
            high = low + (1 - begin) * weights[i] / sum(weights)
            if task.kind == "text":
                context.progress = self._part(low, (low + high) / 2, spec.name)
                context.batch_size, context.reference = 1, self._reference(context, spec)
                low = (low + high) / 2
            context.progress = self._part(low, high, spec.name)
            outcome = task.evaluate(context, spec)
            context.batch_size = self.plan.grid.defaults["batch_size"]
            path = self.store.write_samples(self.cell, spec.name, outcome.samples)
            scores += [score.model_copy(update={"samples": path}) for score in outcome.scores]
            self.view.scored(self.cell, outcome.scores)
        return tuple(scores)

    def _reference(self, context: Context, spec: TaskSpec) -> ReferenceLogits | None:
        """The unquantized model's log-probabilities on the windows of `spec`, where the cell asks for divergence."""
        wanted = [other for other in self.cell.tasks if other.name.endswith("divergence")]
        same = [
            other for other in wanted if (other.limit, other.length) == (spec.limit, spec.length)
        ]
        if not same:
            return None
        path = self.store.reference(self.cell, same[0])
        if path.is_file():
            return ReferenceLogits.open(path)
        model, tokenizer = context.model, context.tokenizer
        if self.cell.method != "none":
            model, tokenizer = load_model(self.plan.sources[self.cell.model], self.cell.dtype)
            model.to(self.plan.device)
        inputs = windows(context.source.text("wikitext"), tokenizer, spec.length or 0, spec.limit)
        return ReferenceLogits.write(model, inputs, path, context.progress, batch_size=1)

    def _part(self, low: float, high: float, name: str) -> Callable[[float, str], None]:
        def report(fraction: float, text: str) -> None:
            self.view.progress(low + (high - low) * fraction, text or name)

        return report


def _stored_bits(source: ModelSource, dtype: str) -> float:
    """Bits per weight of the unquantized model: those of its own dtype."""
    kind = getattr(load_config(source), "dtype", None) or getattr(torch, dtype)
    kind = getattr(torch, kind) if isinstance(kind, str) else kind
    return float(torch.finfo(kind).bits)
