"""What happens to cells and when: a file of JSON lines for each, and one for the plan of a run.

Every line has `time` (seconds of the epoch) and `event`:

    begin     model, label, host, pid
    progress  fraction, text                 now and then; such as a block with its loss
    phase     name, began, seconds           a part of the work that is over, however it ended
    scored    task, scores                   metric, filter, value and stderr of each
    note      text
    finish    status, reason, seconds

A cell that was begun again has its lines below those of the time before. `qbench status` and
traces are made of these files alone.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

from qbench.errors import StoreError
from qbench.files.atomic import write_text
from qbench.files.ordinary import ordinary_bytes, ordinary_text
from qbench.records import Cell, Record, digest

if TYPE_CHECKING:
    from qbench.experiment.plan import Plan
    from qbench.experiment.store import Store

PROGRESS_SECONDS = 2.0  # between two lines that say how far a cell is
SHOWN = ("metric", "filter", "value", "stderr")  # of a score
PLAN_BYTES = 100_000_000
LONGEST = 1e10  # seconds, 300 years: of a run, and since the epoch
Moment = Annotated[float, Field(ge=0, le=LONGEST)]  # seconds of the epoch
Seconds = Annotated[float, Field(ge=-LONGEST, le=LONGEST)]  # older files have negative ones
Estimated = Annotated[float, Field(ge=0, le=LONGEST)]


class Journal:
    """Writes what happens to the cells of one folder."""

    def __init__(self, store: Store, labels: Mapping[str, str] | None = None) -> None:
        """labels: of cells by id, where they are not their own."""
        self.store = store
        self._labels = labels or {}
        self._begun: dict[str, float] = {}
        self._progress: dict[str, float] = {}  # when it was last written, by cell id

    def begin(self, cell: Cell) -> None:
        """A cell starts here."""
        self._begun[cell.id] = time.monotonic()
        self._write(
            cell,
            "begin",
            model=cell.model,
            label=self._labels.get(cell.id, cell.label),
            host=platform.node(),
            pid=os.getpid(),
        )

    def told(self, cell: Cell, event: dict[str, Any]) -> None:
        """An event of the cell's process (`qbench.experiment.cell_process.work`)."""
        if "progress" in event:
            now = time.monotonic()
            if now - self._progress.get(cell.id, -PROGRESS_SECONDS) >= PROGRESS_SECONDS:
                self._progress[cell.id] = now
                fraction = round(event["progress"], 4)
                self._write(cell, "progress", fraction=fraction, text=event["text"])
        elif "phase" in event:
            times = {key: event[key] for key in ("began", "seconds")}
            self._write(cell, "phase", name=event["phase"], **times)
        elif "scores" in event:
            scores = [{key: score[key] for key in SHOWN} for score in event["scores"]]
            self._write(cell, "scored", task=event["scores"][0]["task"], scores=scores)
        elif "note" in event:
            self._write(cell, "note", text=event["note"])

    def finish(self, record: Record) -> None:
        """A cell is done, and its record written."""
        now = time.monotonic()
        seconds = now - self._begun.get(record.id, now)
        self._write(
            record.cell, "finish", status=record.status, reason=record.reason, seconds=seconds
        )

    def _write(self, cell: Cell, event: str, **facts: Any) -> None:
        """Append a line. A disk that refuses ends no cell: its record will say so."""
        line = json.dumps({"time": time.time(), "event": event, **facts}, default=str) + "\n"
        path = self.store.events(cell.id)
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            with path.open("ab") as file:
                file.write(line.encode())


class _Event(BaseModel):
    """What every line has."""

    time: Moment


class _Begin(_Event):
    event: Literal["begin"]
    model: str
    label: str
    host: str
    pid: Annotated[int, Field(ge=1, lt=2**31)]


class _Progress(_Event):
    event: Literal["progress"]
    fraction: Annotated[float, Field(ge=0, le=1)]
    text: str


class _Phase(_Event):
    event: Literal["phase"]
    name: str
    began: Moment
    seconds: Seconds


class _Value(BaseModel):
    metric: str
    filter: str
    value: Annotated[float, Field(allow_inf_nan=False)]
    stderr: Annotated[float, Field(allow_inf_nan=False)] | None


class _Scored(_Event):
    event: Literal["scored"]
    task: str
    scores: tuple[_Value, ...]


class _Note(_Event):
    event: Literal["note"]
    text: str


class _Finish(_Event):
    event: Literal["finish"]
    status: str
    reason: str | None
    seconds: Seconds


_Line = Annotated[
    _Begin | _Progress | _Phase | _Scored | _Note | _Finish, Field(discriminator="event")
]
_LINE: TypeAdapter[_Line] = TypeAdapter(_Line)


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a cell's file, each with all that its kind has; none where there is no file.

    One that is half written is left out, and so is whatever a run does not write.
    """
    with suppress(StoreError):
        for line in ordinary_bytes(path, path.parent).splitlines():
            with suppress(ValueError):
                yield _LINE.validate_json(line).model_dump()


class PlannedCell(BaseModel):
    """A cell of a plan. seconds, latency: estimated, of the cell and of measuring its latency."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    model: str
    label: str
    seconds: Estimated
    latency: Estimated = 0.0


class PlanFile(BaseModel):
    """What a run has to do. started: seconds of the epoch. workers: cells at a time."""

    started: Moment
    workers: int
    cells: tuple[PlannedCell, ...]


def write_plan(store: Store, plan: Plan, latency: bool = True) -> None:
    """Keep what a run has to do; runs of the same cells share the file.

    latency: whether it measures that.
    """
    cells = []
    for cell in plan.cells:
        estimated = plan.estimates[cell.id]
        planned = PlannedCell(
            id=cell.id,
            model=cell.model,
            label=plan.labels[cell.id],
            seconds=_bounded(estimated.seconds),
            latency=_bounded(estimated.latency) if latency else 0.0,
        )
        cells.append(planned)
    body = PlanFile(started=time.time(), workers=plan.jobs, cells=tuple(cells))
    key = digest([cell.id for cell in plan.cells])
    write_text(store.folder / "plans" / f"{key}.json", body.model_dump_json() + "\n")


def _bounded(seconds: float) -> float:
    """Of an estimate, which may be that of a plug-in: at least 0 and at most LONGEST."""
    return min(seconds, LONGEST) if seconds >= 0 else 0.0


def read_plans(folder: Path) -> list[PlanFile]:
    """The plans of a run's folder, the oldest first, without what is damaged."""
    plans = []
    for path in sorted((folder / "plans").glob("*.json")):
        with suppress(StoreError, ValueError):
            text = ordinary_text(path, folder, limit=PLAN_BYTES)
            plans.append(PlanFile.model_validate_json(text))
    return sorted(plans, key=lambda plan: plan.started)
