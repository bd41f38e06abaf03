"""Cells as an array of Slurm jobs, one task each, by submitit.

Cells with a record are not submitted. A job that ends without a result, since its machine was lost,
it ran out of time or was told to end, is submitted again by this process, and never by Slurm itself
(--no-requeue), so that it cannot run beside its own successor.
"""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from qbench.errors import ConfigError, reason_of, unknown_name
from qbench.executors.driver import Driver
from qbench.executors.one_cell import Request, Settled, settle
from qbench.experiment.journal import read_events
from qbench.experiment.plan import Plan
from qbench.experiment.runner import time_limit
from qbench.experiment.store import Store
from qbench.experiment.view import View
from qbench.records import Cell, Record

POLL = 1.0  # seconds between two looks at jobs and events
RETRIES = 2  # submissions of a cell after the first
MARGIN = 600.0  # seconds of a job beside its cell: starting, planning, waiting for what is shared
CLUSTERS = ("slurm", "local", "debug")


def require_slurm(cluster: str | None = None) -> None:
    """ConfigError where submitit or its cluster is not there; `cluster` as in `run_on_slurm`."""
    if cluster is not None and cluster not in CLUSTERS:
        raise ConfigError(unknown_name("--address", cluster, CLUSTERS))
    if find_spec("submitit") is None:
        raise ConfigError(
            "--executor slurm needs submitit, which is not installed; run "
            "`pip install -e '.[slurm]'` in the checkout of qbench"
        )
    missing = [name for name in ("sbatch", "srun") if shutil.which(name) is None]
    if cluster in (None, "slurm") and missing:
        raise ConfigError(
            f"there is no {' and no '.join(missing)} here; --executor slurm is for a machine that "
            "submits to Slurm, and with --address local it does the same with processes"
        )


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
    where submitit or Slurm is not there, or Slurm refuses the jobs; StoreError where results cannot
    be written.
    """
    require_slurm(cluster)
    import submitit

    cluster = "slurm" if cluster is None else cluster
    executor = submitit.AutoExecutor(folder=store.folder / "slurm", cluster=cluster)
    with store.at_work(), closing(Driver(plan, store, view)) as driver:
        cells = driver.missing()
        asked = parameters(plan, cells, cluster, options or {})
        executor.update_parameters(**asked)
        task = settle if cluster == "debug" else settle_in_job  # which is this very process
        if cluster == "slurm":
            at_once = plan.grid.workers or len(cells)
            _Array(executor, driver, at_once, task).settle(cells, queued=len(cells))
        else:
            _Array(executor, driver, plan.jobs, task).settle(cells)
        return driver.records()


def settle_in_job(request: Request) -> Settled:
    """The task: settle a cell. A job that is told to end dies of it, so that it counts as lost.

    submitit's own handlers take the warning before the time limit for an order to requeue, and go
    on after SIGTERM, while the processes of the cell end.
    """
    for warning in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(warning, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return settle(request)


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
    """A cell that is submitted. tries: how often it was. told: its events that the view knows."""

    cell: Cell
    tries: int = 0
    told: int = 0


class _Array:
    """The jobs of a run."""

    def __init__(
        self,
        executor: Any,
        driver: Driver,
        at_once: int,
        task: Callable[[Request], Settled] = settle_in_job,
    ) -> None:
        """at_once: the most jobs that are to be at work. task: settles a cell in one."""
        self._executor = executor
        self._driver = driver
        self._task = task
        self._at_once = at_once
        self._jobs: list[tuple[Any, _Sent]] = []
        self._waiting: list[_Sent] = []

    def settle(self, cells: list[Cell], queued: int = 0) -> None:
        """Submit these cells, and keep what comes until nothing is left.

        queued: how many are submitted at first, where the engine itself lets no more than `at_once`
        of them begin.
        """
        self._waiting = [_Sent(cell, told=len(self._events(cell))) for cell in cells]
        try:
            self._send(queued)
            while self._jobs or self._waiting:
                self._send(self._at_once - len(self._jobs))
                self._look()
                if self._jobs:
                    time.sleep(POLL)
        finally:
            for job, _ in self._jobs:  # of a run that was interrupted
                _cancel(job)

    def _send(self, count: int) -> None:
        """Submit as many of the cells that wait. ConfigError where that is refused.

        Where other jobs are at work they go on, and the cells that are refused are recorded so.
        """
        sent = self._waiting[: max(0, count)]
        if not sent:
            return
        del self._waiting[: len(sent)]
        requests = [self._driver.request(each.cell) for each in sent]
        # Ctrl-C is for this process, which cancels its jobs; those of this machine would complain.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            jobs = self._executor.map_array(self._task, requests)
        except (OSError, RuntimeError) as error:  # of submitit, with what sbatch has said
            said = " ".join(str(error).split())
            if not self._jobs and all(each.tries == 0 for each in sent):
                raise ConfigError(
                    f"the jobs cannot be submitted: {said}; what sbatch is to be told is "
                    "--slurm KEY=VALUE, such as --slurm partition=gpu"
                ) from None
            for each in sent:
                self._driver.fail(each.cell, f"its job cannot be submitted: {said}")
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for each in sent:
            each.tries += 1
        self._jobs += zip(jobs, sent, strict=True)

    def _look(self) -> None:
        """One look at every job."""
        for entry in list(self._jobs):
            job, sent = entry
            done = job.done()
            # For submitit such a job goes on, as Slurm might requeue it; these are for once.
            preempted = not done and job.state.upper().startswith("PREEMPTED")
            self._replay(sent)
            if preempted:
                self._jobs.remove(entry)
                self._lose(job, sent)
            elif done:
                self._jobs.remove(entry)
                self._take(job, sent)

    def _take(self, job: Any, sent: _Sent) -> None:
        """Keep what came of a job that has ended."""
        import submitit

        try:
            settled = job.result()
        except submitit.core.utils.FailedJobError as error:
            self._driver.fail(sent.cell, f"Slurm job {job.job_id}: {reason_of(error)}")
        except submitit.core.utils.UncompletedJobError:
            self._lose(job, sent)
        else:
            self._driver.take(sent.cell, settled)

    def _lose(self, job: Any, sent: _Sent) -> None:
        """Have the cell of a job that ended without a result submitted again, twice at most."""
        if self._driver.is_settled(sent.cell):  # it was lost after its cell was done
            self._driver.take(sent.cell, Settled())
        elif sent.tries <= RETRIES:
            self._waiting.append(sent)
        else:
            lines = [line.strip() for line in (job.stderr() or "").split("\n") if line.strip()]
            said = f"; it last said: {lines[-1]}" if lines else ""
            reason = (
                f"its job ended {sent.tries} times without a result, the last one "
                f"({job.job_id}) in the state {job.state}{said}"
            )
            self._driver.fail(sent.cell, reason)

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


def _cancel(job: Any) -> None:
    """End a job; submitit would send SIGINT to one of this machine, which has it blocked."""
    from submitit import LocalJob

    if isinstance(job, LocalJob):
        job._process.terminate()
    else:
        job.cancel(check=False)
