"""Cells as an array of Slurm jobs, one task each, by submitit.

Cells with a record are not submitted. A job that ends without a result, since its machine was lost
or it ran out of time, is submitted again by this process, and never by Slurm itself (--no-requeue),
so that it cannot run beside its own successor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from qbench.errors import ConfigError, reason_of
from qbench.executors.driver import Driver
from qbench.executors.one_cell import Settled, settle
from qbench.experiment.journal import read_events
from qbench.experiment.plan import Plan
from qbench.experiment.runner import View, time_limit
from qbench.experiment.store import Store
from qbench.records import Cell, Record

POLL = 1.0  # seconds between two looks at jobs and events
RETRIES = 2  # submissions of a cell after the first
MARGIN = 600.0  # seconds of a job beside its cell: starting, planning, waiting for what is shared
CLUSTERS = ("slurm", "local", "debug")


def run_on_slurm(
    plan: Plan,
    store: Store,
    view: View,
    cluster: str | None = None,
    options: Mapping[str, str] | None = None,
) -> list[Record]:
    """Settle the cells of a plan as Slurm jobs; returns the records of all cells.

    cluster: of submitit; None is Slurm, `local` processes of this machine, `debug` this process.
    options: of sbatch, such as `{"partition": "gpu"}`. The run's folder must be shared. ConfigError
    where submitit or Slurm is not there; StoreError where results cannot be written.
    """
    submitit = _submitit()
    cluster = "slurm" if cluster is None else cluster
    if cluster not in CLUSTERS:
        raise ConfigError(f"--address {cluster!r} is none of {', '.join(CLUSTERS)}")
    try:
        executor = submitit.AutoExecutor(folder=store.folder / "slurm", cluster=cluster)
    except RuntimeError as error:
        raise ConfigError(
            f"{reason_of(error)}; --executor slurm is for a machine that submits to Slurm"
        ) from None
    with store.at_work(), closing(Driver(plan, store, view)) as driver:
        cells = driver.missing()
        asked = parameters(plan, cells, cluster, options or {})
        executor.update_parameters(**asked)
        _Array(executor, driver).settle(cells)
        return driver.records()


def parameters(
    plan: Plan, cells: list[Cell], cluster: str, options: Mapping[str, str]
) -> dict[str, Any]:
    """What submitit is to ask for: the most that any of the cells needs."""
    estimates = [plan.estimates[cell.id] for cell in cells]
    longest = max((time_limit(each, plan.grid.time_limit) for each in estimates), default=0.0)
    memory = max((each.peak_bytes for each in estimates), default=0)
    asked: dict[str, Any] = {
        "name": "qbench",
        "cpus_per_task": plan.threads,
        "timeout_min": math.ceil((longest + MARGIN) / 60),
        "mem_gb": math.ceil(2 * memory / 1e9),  # estimates are within a factor of two
        "gpus_per_node": int(plan.device != "cpu"),
    }
    if cluster == "slurm":
        asked["slurm_array_parallelism"] = plan.grid.workers or max(1, len(cells))
        asked["slurm_additional_parameters"] = {"no_requeue": True, **options}
    return asked


@dataclass
class _Sent:
    """A cell that was submitted. told: its events that the view knows."""

    cell: Cell
    tries: int = 1
    told: int = 0


class _Array:
    """The jobs of a run."""

    def __init__(self, executor: Any, driver: Driver) -> None:
        self._executor = executor
        self._driver = driver
        self._jobs: list[tuple[Any, _Sent]] = []

    def settle(self, cells: list[Cell]) -> None:
        """Submit these cells, and keep what comes until nothing is left."""
        if not cells:
            return
        requests = [self._driver.request(cell) for cell in cells]
        jobs = self._executor.map_array(settle, requests)
        sent = [_Sent(cell, told=len(self._events(cell))) for cell in cells]
        self._jobs = list(zip(jobs, sent, strict=True))
        try:
            while self._jobs:
                self._look()
                if self._jobs:
                    time.sleep(POLL)
        finally:
            for job, _ in self._jobs:  # of a run that was interrupted
                job.cancel(check=False)

    def _look(self) -> None:
        """One look at every job."""
        for entry in list(self._jobs):
            job, sent = entry
            done = job.done()
            self._replay(sent)
            if not done:
                continue
            self._jobs.remove(entry)
            self._take(job, sent)

    def _take(self, job: Any, sent: _Sent) -> None:
        """Keep what came of a job; one that was lost is submitted again."""
        import submitit

        try:
            settled = job.result()
        except submitit.core.utils.FailedJobError as error:
            self._driver.fail(sent.cell, f"Slurm job {job.job_id}: {reason_of(error)}")
        except submitit.core.utils.UncompletedJobError as error:
            if self._driver.is_settled(sent.cell):  # it was lost after its cell was done
                self._driver.take(sent.cell, Settled())
            elif sent.tries > RETRIES:
                reason = f"Slurm lost it {sent.tries} times: {reason_of(error)}"
                self._driver.fail(sent.cell, reason)
            else:
                again = self._executor.submit(settle, self._driver.request(sent.cell))
                self._jobs.append((again, _Sent(sent.cell, sent.tries + 1, sent.told)))
        else:
            self._driver.take(sent.cell, settled)

    def _replay(self, sent: _Sent) -> None:
        """Tell the view what the cell's file of events has got."""
        events = self._events(sent.cell)
        for event in events[sent.told :]:
            kind, value = event["event"], None
            if kind == "progress":
                value = [event["fraction"], event["text"]]
            elif kind == "note":
                value = event["text"]
            if kind in ("begin", "progress", "note"):
                self._driver.replay([(sent.cell.id, kind, value)])
        sent.told = len(events)

    def _events(self, cell: Cell) -> list[dict[str, Any]]:
        return list(read_events(self._driver.store.events(cell.id)))


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise ConfigError(
            "--executor slurm needs submitit, which is not installed; "
            "`pip install 'qbench-llm[slurm]'`"
        ) from None
    return submitit
