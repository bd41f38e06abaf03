"""From a plan to records: cell by cell, each in a process of its own, beside other runners.

A runner claims a cell before it works on it. It leaves cells to the runners that have claimed them,
and waits for these at the end, so that all runners of one plan on one folder end with the same
records. On the processor a runner works on several cells at a time, each on a part of the cores.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qbench.checkpoint.folder import add_scores, is_checkpoint
from qbench.errors import StoreError, readable
from qbench.experiment.back_off import (
    NOTHING,
    batches,
    can_be_offloaded,
    caution,
    is_helped,
    present_memory,
    sizes_in_words,
    system_kills,
)
from qbench.experiment.benchmarks import benchmarks
from qbench.experiment.cell_process import work
from qbench.experiment.estimate import Estimate
from qbench.experiment.job import Job
from qbench.experiment.journal import Journal, write_plan
from qbench.experiment.latencies import code_of, measure, not_measured, wanted
from qbench.experiment.outcomes import machine_of, record_of
from qbench.experiment.overlap import overlaps
from qbench.experiment.plan import Plan, working_order
from qbench.experiment.plugins import kernels_of, plugins_of
from qbench.experiment.store import COMPUTING, Store
from qbench.experiment.view import View
from qbench.files.claims import claimed, claimed_in_time
from qbench.isolation import Isolated, Tell
from qbench.records import Cell, Latency, Record, Score

POLL = 0.5  # seconds between two looks at what other runners do
# The default time limit is generous: an estimate is right within a factor of two on an idle
# machine, and what hangs would hang for ever.
LEAST_LIMIT = 600.0  # seconds
LIMIT_FACTOR = 20


def run(plan: Plan, store: Store, view: View) -> list[Record]:
    """Run the cells that have no `ok` record; returns the records of all cells of the plan.

    A cell that fails is recorded, and the others go on. StoreError where results can no longer be
    written; what was written stays, and the same call resumes.
    """
    running = _Run(plan, store, view, machine_of(plan))
    write_plan(store, plan)
    with store.at_work():
        running.work()
        if plan.grid.with_latency:
            running.measure()
        return [store.record(cell) or running.settled[cell.id] for cell in plan.cells]


def time_limit(estimate: Estimate, asked: float | None) -> float:
    """Seconds that a cell may take: what was asked for, or many times its estimate."""
    return LEAST_LIMIT + LIMIT_FACTOR * estimate.seconds if asked is None else asked


@dataclass
class _Run:
    """A runner at work.

    journal: keeps what happens to cells. settled: by cell id, the records that this run made or
    found. at_work: ids of the cells that it works on, with the GPU that each has for itself.
    stopping: whether it has been told to end.
    overlaps: what of each task the calibration text holds.
    """

    plan: Plan
    store: Store
    view: View
    machine: dict[str, Any]
    settled: dict[str, Record] = field(default_factory=dict)
    at_work: dict[str, str | None] = field(default_factory=dict)
    taking: threading.Lock = field(default_factory=threading.Lock)
    stopping: threading.Event = field(default_factory=threading.Event)
    overlaps: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.journal = Journal(self.store, self.plan.labels)

    def work(self) -> None:
        """Settle every cell, those of other runners last."""
        # The stamps first: what is recorded from here on is another runner's, and counts.
        before = {cell.id: self.store.stamp(cell) for cell in self.plan.cells}
        records = {record.id: record for record in self.store.read_records()[0]}
        for cell in self.plan.cells:
            if cell.id in records and records[cell.id].status == "ok":
                self.settled[cell.id] = records[cell.id]
        if any(cell.calibration and cell.id not in self.settled for cell in self.plan.cells):
            self.overlaps = overlaps(self.plan.source, self.plan.tasks.values())
        if self.plan.jobs == 1:
            self._settle(before, None)
            return
        with ThreadPoolExecutor(self.plan.jobs) as pool:
            gpus = self.plan.gpus or (None,)
            workers = [
                pool.submit(self._settle, before, gpus[worker % len(gpus)])
                for worker in range(self.plan.jobs)
            ]
            try:
                for worker in as_completed(workers):
                    worker.result()
            except BaseException:  # of one of them, or Ctrl-C
                self.stopping.set()
                raise

    def _settle(self, before: Mapping[str, object], gpu: str | None) -> None:
        """Take cells until none is left. before: the stamps of old records, by cell id."""
        order = working_order(self.plan)
        while waiting := [cell for cell in order if cell.id not in self.settled]:
            taken = [self._take(cell, before[cell.id], gpu) for cell in waiting]
            if self.stopping.is_set():
                return
            if not any(taken):
                if not self.at_work:
                    self.view.waiting(len(waiting))
                time.sleep(POLL)

    def measure(self) -> None:
        """Measure the latency of the finished cells, one by one, while nothing else computes here.

        Cells of older runs are among them, whose records have no latency or one of other kernels.
        """
        code = code_of(kernels_of(self.plan.grid.plugin))

        def is_wanted(cell: Cell, latency: Latency | None) -> bool:
            artifact = self.store.artifact(cell)
            return wanted(cell, latency, code, self.machine["hardware"], artifact)

        for cell in self.plan.cells:
            settled = self.settled[cell.id]
            if settled.status != "ok" or not is_wanted(cell, settled.latency):
                continue
            with claimed_in_time(self.store.claim(COMPUTING), lambda: self.view.waiting(1)):
                record = self.store.record(cell) or settled
                if is_wanted(cell, record.latency):  # else another runner was faster
                    self.view.begin_latency(cell)
                    record = self.store.add_latency(cell, self._latency(cell))
            self.settled[cell.id] = record
            self.view.measured(record)

    def _latency(self, cell: Cell) -> Latency:
        """The latency of a cell's packed model; with a reason where it cannot be measured."""
        try:
            outcome = self._isolated(measure, cell, LEAST_LIMIT)
        except OSError as error:
            outcome = {"reason": f"no process can be started: {error}"}
        if "latency" in outcome:
            return Latency.model_validate(outcome["latency"])
        return not_measured(cell, self.machine["hardware"], outcome["reason"])

    def _take(self, cell: Cell, before: object, gpu: str | None) -> bool:
        """Settle a cell unless another runner works on it. before: the stamp of an old record."""
        with self.taking:
            if self.stopping.is_set() or cell.id in self.settled or cell.id in self.at_work:
                return False
            self.at_work[cell.id] = gpu
        try:
            return self._settled(cell, before)
        finally:
            del self.at_work[cell.id]

    def _settled(self, cell: Cell, before: object) -> bool:
        """Settle a cell; False where another runner works on it."""
        with claimed(self.store.claim(cell.id)) as mine:
            record = self._from_elsewhere(cell, before)
            if record is None and not mine:
                return False
            position = self.plan.cells.index(cell) + 1
            if record is not None:
                self.view.begin(cell, position, len(self.plan.cells))
            else:
                # Before it is begun, as the time until then is none of the cell's.
                with claimed_in_time(self.store.claim(COMPUTING), self._waiting, shared=True):
                    self.view.begin(cell, position, len(self.plan.cells))
                    self.journal.begin(cell)
                    record = self._record(cell)
                self.store.write_record(record)
                self.journal.finish(record)
            self.settled[cell.id] = record
            self.view.finish(record)
        return True

    def _waiting(self) -> None:
        """Say that another runner measures a latency; KeyboardInterrupt where the run is to end.

        A signal reaches the main thread alone, and not that of a worker.
        """
        if self.stopping.is_set():
            raise KeyboardInterrupt
        self.view.waiting(1)

    def _from_elsewhere(self, cell: Cell, before: object) -> Record | None:
        """The record that another runner has written since this one started, also of a failure."""
        if self.store.stamp(cell) == before:
            return None
        return self.store.record(cell)

    def _record(self, cell: Cell) -> Record:
        """Run a cell, or say why not. StoreError where results cannot be written."""
        if cell.id in self.plan.skipped:
            return self._made(cell, "skipped", self.plan.skipped[cell.id])
        try:
            outcome = self._worked_on(cell)
        except OSError as error:
            raise StoreError(
                f"no process can be started, or {self.store.folder} not be written: {error}; free "
                "memory and space, and give the same command again"
            ) from error
        reason = outcome.get("reason")
        facts = outcome.get("facts", {})
        tokens = outcome.get("tokens", {})
        if outcome.get("unwritable"):
            raise StoreError(reason)
        if reason is not None:
            return self._made(cell, "failed", reason, facts, tokens)
        record = self._made(cell, "ok", None, facts, tokens)
        # The card of the quantized model shows its scores; the unquantized one has no artifact.
        if cell.scheme is not None:
            artifact = self.store.artifact(cell)
            try:
                add_scores(artifact, record, benchmarks(self.plan.tasks))
            except StoreError:
                if is_checkpoint(artifact):
                    raise  # it cannot be written
                why = f"its model was removed or damaged while it was at work: {artifact}"
                return self._made(cell, "failed", why)
        return record

    def _worked_on(self, cell: Cell) -> dict[str, Any]:
        """The last event of the cell's process.

        Where memory runs out, the cell is tried with smaller batches, and then once block by block.
        """
        limit = time_limit(self.plan.estimates[cell.id], self.plan.grid.time_limit)
        sizes = batches(self.plan, cell)
        times = 0  # that memory ran out with a batch of several
        paged = False
        while True:
            kills = system_kills()
            tried = sizes[: times + 1]
            outcome = self._isolated(work, cell, limit, times, paged)
            if outcome.get("killed") and system_kills() > kills:
                outcome |= {"out_of_memory": "its work", "memory": present_memory("cpu")}
            if "out_of_memory" not in outcome:
                break
            ran_out = f"{self.plan.labels[cell.id]} ran out of memory in {outcome['out_of_memory']}"
            if tried[-1] > 1 and is_helped(outcome, cell):
                times += 1
                self.view.note(f"{ran_out} with a batch of {tried[-1]}; again with {sizes[times]}")
            elif not paged and can_be_offloaded(self.plan, cell):
                paged = True
                self.view.note(f"{ran_out}; again with one block in memory at a time")
            else:
                words = sizes_in_words(self.plan, cell, tried, outcome["memory"], paged)
                outcome["reason"] = readable(f"{outcome['reason']}; {words}")
                break
        if times and "reason" not in outcome:
            said = [*outcome["facts"].get("warnings", ()), caution(tried)]
            outcome["facts"]["warnings"] = said
        return outcome

    def _made(
        self,
        cell: Cell,
        status: Literal["ok", "failed", "skipped"],
        reason: str | None,
        facts: dict[str, Any] | None = None,
        tokens: dict[str, Any] | None = None,
    ) -> Record:
        return record_of(self.plan, self.machine, cell, status, reason, facts, tokens)

    def _isolated(
        self,
        function: Callable[[Tell, Job], None],
        cell: Cell,
        limit: float,
        halvings: int = 0,
        paged: bool = False,
    ) -> dict[str, Any]:
        """What a function tells in the end in the cell's own process, or a `reason` alone, with
        whether it was `killed`.

        limit: seconds that it may take. halvings: of the batches. paged: whether the model is read
        block by block.
        """
        log = self.store.log(cell)
        log.parent.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        with Isolated(function, (self._job(cell, halvings, paged),), output=log) as process:
            outcome = self._outcome(process, cell, limit)
            if outcome is None:
                ending = process.ending or f"was not done within {limit:.0f} s (--time-limit)"
                killed = process.process.exitcode == -signal.SIGKILL
                reason = readable(f"the cell {ending}{_last_words(log)}")
                outcome = {"reason": reason, "killed": killed}
        if "reason" not in outcome or not log.stat().st_size:
            log.unlink(missing_ok=True)
        return outcome

    def _outcome(self, process: Isolated, cell: Cell, limit: float) -> dict[str, Any] | None:
        """Pass on what is told until there is an outcome; None where none comes."""
        deadline = time.monotonic() + limit
        while event := self._event(process, deadline):
            if "facts" in event or "latency" in event:
                return event
            self.journal.told(cell, event)
            if "progress" in event:
                self.view.progress(cell, event["progress"], event["text"])
            elif "scores" in event:
                scores = [Score.model_validate(score) for score in event["scores"]]
                self.view.scored(cell, scores)
            elif "note" in event:
                self.view.note(event["note"])
            elif "waiting" in event:  # for another runner: that time does not count
                deadline = time.monotonic() + limit
        return None

    def _event(self, process: Isolated, deadline: float) -> dict[str, Any] | None:
        """The next thing told; None where none comes in time, or the process has ended."""
        while not self.stopping.is_set():
            left = deadline - time.monotonic()
            event = process.next(min(POLL, left))
            if event is None and process.ending is not None:
                return process.next(0)  # its last words may have come in between
            if event is not None or left <= 0:
                return event
        raise KeyboardInterrupt

    def _job(self, cell: Cell, halvings: int, paged: bool = False) -> Job:
        plan = self.plan
        return Job(
            cell=cell,
            model=plan.sources[cell.model],
            data=plan.grid.data,
            task_names={name: task.name for name, task in plan.tasks.items()},
            declared=dict(plan.declared),
            batch_size=plan.grid.defaults["batch_size"],
            plugins=plugins_of(cell.method, plan.grid.plugin),
            kernels=kernels_of(plan.grid.plugin),
            device=plan.device,
            threads=plan.threads,
            estimate=plan.estimates[cell.id],
            folder=self.store.folder.resolve(),
            place=Path.cwd(),
            overlaps=self.overlaps,
            memory=NOTHING if paged else plan.grid.memory,
            gpu=self.at_work.get(cell.id),
            halvings=halvings,
        )


def _last_words(log: Path) -> str:
    """The last line that a process has printed, which is where libraries say why they abort."""
    lines = log.read_bytes()[-10_000:].decode(errors="replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return f"; it last said: {said[-1]}" if said else ""
