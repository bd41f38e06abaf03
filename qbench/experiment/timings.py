"""What the stages of a cell took on this machine, held against what the cost model says of them.

The model (`qbench.experiment.estimate`) counts products. What else a stage costs differs between
methods and machines, so a run keeps by which factor each stage was slower than modelled, and a
later run of the same kind multiplies by it. Of one kind are runs on the same processor or GPU, in
the same dtype, with as many cells at a time and threads, of models of the same order of size.
"""

from __future__ import annotations

import heapq
import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import StoreError
from qbench.experiment.estimate import Estimate, Rates
from qbench.files.atomic import write_text
from qbench.files.cache import cache_folder
from qbench.files.ordinary import json_of, ordinary_text
from qbench.records import Cell, Record, TaskSpec, digest

if TYPE_CHECKING:
    from qbench.experiment.plan import Plan
    from qbench.experiment.view import View

KEPT = 3  # values of a stage, the latest; the median counts, and of two the lower
LATENCY = "latency"
HANDLING = "handling"
WINDOWS = "windows"  # of tasks on running text, which share a pass
RATES = ("evaluation", "walk", "training")
# Before anything is known of a machine: the default bench in bfloat16 on two Zen 4 cores, two cells
# at a time (19 cells of SmolLM2-135M; `quick` as of 2026). A GPU's own constants hold there.
FIRST = {
    "quantize rtn": 0.4,
    "quantize alternating 2": 2.7,
    "quantize alternating 3": 4.0,
    "quantize alternating 4": 6.1,
    "quantize gptq": 1.8,
    "quantize awq": 1.6,
    "quantize flexround": 1.35,
    "quantize uniquanf": 1.35,
    "windows": 0.83,
    "task": 0.75,
}


@dataclass
class Timings:
    """Of runs of one kind: by stage, by which factors it was slower than modelled.

    place: the file in the cache. rates: the fastest matrix rates that were measured, in flops per
    second, by their names in `Rates`: a busy moment makes no machine slower.
    """

    place: Path
    factors: dict[str, list[float]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, kind: Mapping[str, Any]) -> Timings:
        """What is kept under these facts; empty where nothing is, or it is damaged."""
        timings = cls(cache_folder() / "timings" / f"{digest(kind)}.json")
        with suppress(StoreError, ValueError, KeyError, TypeError, AttributeError):
            body = json_of(ordinary_text(timings.place))
            factors = {str(k): [_positive(v) for v in kept] for k, kept in body["factors"].items()}
            rates = {str(k): _positive(v) for k, v in body["rates"].items()}
            timings.factors, timings.rates = factors, rates
        return timings

    def save(self) -> None:
        """Keep it; where there is no cache, nothing is kept."""
        body = {"factors": self.factors, "rates": self.rates}
        with suppress(StoreError):
            write_text(self.place, json.dumps(body, indent=1, sort_keys=True) + "\n")

    def factor(self, names: Sequence[str], device: str) -> float:
        """Of the first of these names that is known here, else of the first that is at all."""
        for name in names:
            if name in self.factors:
                return statistics.median_low(self.factors[name])
        if device != "cpu":
            return 1.0
        return next((FIRST[name] for name in names if name in FIRST), 1.0)

    def note(self, names: Sequence[str], seconds: float, modelled: float) -> None:
        """A stage took so long; names: of what it is, the most particular first."""
        if seconds <= 0 or modelled <= 0:
            return
        for name in names:
            kept = self.factors.setdefault(name, [])
            kept.append(round(seconds / modelled, 4))
            del kept[:-KEPT]

    def fastest(self, rates: Rates) -> Rates:
        """The rates, or what was faster before; the faster ones are remembered."""
        for name in RATES:
            self.rates[name] = max(self.rates.get(name, 0.0), getattr(rates, name))
        known = self.rates
        return replace(
            rates,
            evaluation=known["evaluation"],
            walk=known["walk"],
            training=known["training"],
        )


def kind_of(
    machine: Mapping[str, Any], device: str, dtype: str, jobs: int, threads: int, parameters: int
) -> dict[str, Any]:
    """What runs have in common whose times say something of each other.

    machine: of `qbench.environment.hardware`, which may have no GPU for cells of other machines.
    """
    return {
        "machine": machine["cpu"] if device == "cpu" else machine.get("gpu"),
        "device": device.partition(":")[0],
        "dtype": dtype,
        "jobs": jobs,
        "threads": threads,
        "size": round(math.log10(max(1, parameters))),
    }


def corrected(cell: Cell, modelled: Estimate, timings: Timings) -> Estimate:
    """The estimate with what such stages took here before."""

    def times(seconds: float, *names: str) -> float:
        return seconds * timings.factor(names, cell.device)

    tasks = {}
    for spec in cell.tasks:
        tasks[spec.name] = times(modelled.tasks[spec.name], *_task_names(spec))
    return replace(
        modelled,
        quantize=times(modelled.quantize, *_method_names(cell)),
        handling=times(modelled.handling, HANDLING),
        tasks=tasks,
        latency=times(modelled.latency, LATENCY),
    )


def learn(cell: Cell, record: Record, taken: float, modelled: Estimate, timings: Timings) -> bool:
    """Note what a finished cell took; False where it did not do all of its work itself.

    taken: seconds from its beginning to its record.
    """
    quantized = record.quantize_seconds or 0.0
    if record.status != "ok" or taken < quantized + (record.evaluate_seconds or 0.0):
        return False
    timings.note(_method_names(cell), quantized, modelled.quantize)
    rest = taken - quantized
    windows, modelled_windows = 0.0, 0.0
    for spec in cell.tasks:
        seconds = record.evaluation.get(spec.name, {}).get("seconds", 0.0)
        rest -= seconds
        if spec.length is None:
            timings.note(_task_names(spec), seconds, modelled.tasks[spec.name])
        else:
            windows += seconds
            modelled_windows += modelled.tasks[spec.name]
    timings.note([WINDOWS], windows, modelled_windows)
    timings.note([HANDLING], rest, modelled.handling)
    return True


def learn_from(plan: Plan, records: Iterable[Record], clock: Clock) -> list[float]:
    """Keep what the cells and latencies of a run took; how many times longer cells took than said.

    Of the cells, those count that this run did from their beginning to their end.
    """
    longer = []
    cells = {cell.id: cell for cell in plan.cells}
    for record in records:
        if record.id in clock.cells:
            timings, modelled = plan.timings[record.cell.model], plan.modelled[record.id]
            taken = clock.cells[record.id]
            if learn(cells[record.id], record, taken, modelled, timings):
                longer.append(taken / plan.estimates[record.id].seconds)
    for name, timings in plan.timings.items():
        # Of a format that an earlier run has timed, nothing is left to do.
        own = [i for i in clock.latencies if i in clock.cells and cells[i].model == name]
        modelled_latency = sum(plan.modelled[i].latency for i in own)
        timings.note([LATENCY], sum(clock.latencies[i] for i in own), modelled_latency)
        timings.save()
    return longer


def makespan(seconds: Iterable[float], jobs: int) -> float:
    """How long cells take that are begun in this order, as many at a time as there are jobs."""
    ends = [0.0] * jobs
    for cell in seconds:
        heapq.heapreplace(ends, ends[0] + cell)
    return max(ends)


def _method_names(cell: Cell) -> list[str]:
    bits = f" {cell.scheme.width}" if cell.scheme else ""
    return [f"quantize {name}" for name in (cell.label, f"{cell.method}{bits}", cell.method)]


def _task_names(spec: TaskSpec) -> list[str]:
    return [WINDOWS] if spec.length is not None else [f"task {spec.name}", "task"]


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError(value)
    return number


class Clock:
    """A view of a run that hands everything on, and notes how long cells and latencies took.

    cells, latencies: seconds by the cell's id, of those that this run began and ended.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self.began = time.perf_counter()
        self.cells: dict[str, float] = {}
        self.latencies: dict[str, float] = {}
        self._begun: dict[str, float] = {}

    @property
    def seconds(self) -> float:
        """Since this clock was made."""
        return time.perf_counter() - self.began

    def begin(self, cell: Cell, position: int, cells: int) -> None:
        """A cell starts."""
        self._begun[cell.id] = time.perf_counter()
        self.view.begin(cell, position, cells)

    def finish(self, record: Record) -> None:
        """A cell is done."""
        self.cells[record.id] = time.perf_counter() - self._begun.pop(record.id)
        self.view.finish(record)

    def begin_latency(self, cell: Cell) -> None:
        """The latency of a finished cell is being measured."""
        self._begun[cell.id] = time.perf_counter()
        self.view.begin_latency(cell)

    def measured(self, record: Record) -> None:
        """The latency of a finished cell is known."""
        if record.id in self._begun:  # else another runner has measured it
            self.latencies[record.id] = time.perf_counter() - self._begun.pop(record.id)
        self.view.measured(record)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.view, name)
