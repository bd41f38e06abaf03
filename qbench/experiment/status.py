"""How far a run is, read from its folder, which is not changed.

A cell is at work if a runner has claimed it, or if its file of events has just grown, and its
runner has not ended where that is to be seen, on this machine: some file systems have no locks, and
do not show the claims of other machines. Between cells, and while latencies are measured, the
claims of the runners themselves say that one is at work.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qbench.experiment.journal import PlannedCell, read_events, read_plans
from qbench.experiment.store import COMPUTING, RUNNERS, Store, open_run
from qbench.files.claims import is_claimed
from qbench.isolation import runs
from qbench.records import Record, labels

FRESH = 60.0  # seconds from the last event of a cell at work, at most; clocks may differ
SLOWEST = 1e6  # pace; what seems slower was estimated by nobody
State = Literal["ok", "failed", "skipped", "running", "waiting"]
STATES: tuple[State, ...] = ("ok", "running", "waiting", "failed", "skipped")


@dataclass(frozen=True)
class CellStatus:
    """One cell of a run.

    fraction, text: of one at work, how far it is, such as its block and loss. host: where that is.
    seconds: since it was begun, or that it took. estimated: seconds that it was to take. latency:
    seconds that measuring its latency will take, before that is done. reason: of one that failed or
    was skipped.
    """

    id: str
    model: str
    label: str
    state: State
    estimated: float
    latency: float = 0.0
    fraction: float = 0.0
    text: str = ""
    host: str = ""
    seconds: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class RunStatus:
    """A run.

    seconds_left: None where nobody is at work. complaints: about its records. at_work: whether a
    runner is. measuring: whether it measures a latency.
    """

    folder: Path
    cells: tuple[CellStatus, ...]
    seconds_left: float | None
    complaints: tuple[str, ...] = ()
    at_work: bool = False
    measuring: bool = False

    @property
    def counts(self) -> dict[State, int]:
        """Cells by state, those that there are."""
        numbers = Counter(cell.state for cell in self.cells)
        return {state: numbers[state] for state in STATES if numbers[state]}


def read_status(folder: Path, now: float | None = None) -> RunStatus:
    """The cells of all plans of a run's folder, and of its records; StoreError where it is none.

    now: seconds of the epoch, where it is not the present.
    """
    store = open_run(folder)
    now = time.time() if now is None else now
    records, complaints = store.peek_records()
    by_id = {record.id: record for record in records}
    planned: dict[str, PlannedCell] = {}
    told = labels(record.cell for record in records)
    for name, record in by_id.items():
        model = record.cell.model
        planned[name] = PlannedCell(id=name, model=model, label=told[name], seconds=0.0)
    for plan in read_plans(folder):
        for cell in plan.cells:
            # Told apart from the cells of its grid, and of the folder's other runs.
            longer = max(cell.label, told.get(cell.id, ""), key=len)
            planned[cell.id] = cell.model_copy(update={"label": longer})
    cells = tuple(_cell(store, cell, by_id.get(cell.id), now) for cell in planned.values())
    measuring = is_claimed(store.claim(COMPUTING))
    at_work = measuring or any(cell.state == "running" for cell in cells)
    # It is held for a moment to find out, so only where nothing else tells.
    at_work = at_work or is_claimed(store.claim(RUNNERS), shared=True)
    left = seconds_left(cells) if at_work else None
    return RunStatus(folder, cells, left, tuple(complaints), at_work, measuring)


def seconds_left(cells: Sequence[CellStatus]) -> float:
    """What is estimated of the cells that wait or are at work, at the pace of those that are done.

    It is divided by the cells at work; latencies are measured one after the other.
    """
    running = [cell for cell in cells if cell.state == "running"]
    done = [cell for cell in cells if cell.state == "ok" and cell.seconds and cell.estimated]
    pace = 1.0
    if done:
        pace = sum(cell.seconds or 0.0 for cell in done) / sum(cell.estimated for cell in done)
        pace = min(max(pace, 0.0), SLOWEST)
    left = sum(cell.estimated for cell in cells if cell.state == "waiting")
    left += sum((1 - cell.fraction) * cell.estimated for cell in running)
    latencies = sum(cell.latency for cell in cells if cell.state in ("ok", "running", "waiting"))
    return pace * left / max(1, len(running)) + latencies


def _cell(store: Store, planned: PlannedCell, record: Record | None, now: float) -> CellStatus:
    """What the folder says of one cell."""
    facts: dict[str, Any] = {
        "id": planned.id,
        "model": planned.model,
        "label": planned.label,
        "estimated": planned.seconds,
    }
    if record is None or record.latency is None:
        facts["latency"] = planned.latency
    attempt = _last_attempt(store, planned.id)
    done = record is not None and record.status == "ok"
    if not done and (_is_fresh(attempt, now) or is_claimed(store.claim(planned.id))):
        return CellStatus(state="running", **facts, **_at_work(attempt, now))
    if record is None:
        return CellStatus(state="waiting", **facts)
    finish = _finish(attempt)
    seconds = None if finish is None else finish["seconds"]
    return CellStatus(state=record.status, reason=record.reason, seconds=seconds, **facts)


def _last_attempt(store: Store, cell: str) -> list[dict[str, Any]]:
    """The events of a cell since it was last begun; none where it never was. cell: its id."""
    events = list(read_events(store.events(cell)))
    begins = [i for i, event in enumerate(events) if event["event"] == "begin"]
    return events[begins[-1] :] if begins else []


def _finish(attempt: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The event with which an attempt was finished, after which its latency may be measured."""
    return next((event for event in attempt if event["event"] == "finish"), None)


def _is_fresh(attempt: Sequence[dict[str, Any]], now: float) -> bool:
    """Whether its last event is so young that its runner must be at work, unless it has ended."""
    if not attempt or _finish(attempt) is not None:
        return False
    return abs(now - attempt[-1]["time"]) < FRESH and not _has_ended(attempt[0])


def _has_ended(begin: dict[str, Any]) -> bool:
    """Whether the runner that began a cell was on this machine, and is no more."""
    return bool(begin["host"] == platform.node()) and not runs(begin["pid"], begin["time"] + FRESH)


def _at_work(attempt: Sequence[dict[str, Any]], now: float) -> dict[str, Any]:
    """How far a cell at work is. attempt: its events since it was begun."""
    facts: dict[str, Any] = {}
    for event in attempt:
        if event["event"] == "begin":
            facts = {"host": event["host"], "seconds": max(0.0, now - event["time"])}
        elif event["event"] == "progress":
            facts["fraction"] = event["fraction"]
            facts["text"] = event["text"]
    return facts
