"""What every executor does around its engine: which cells to send, and what comes back."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qbench.errors import StoreError, readable
from qbench.executors.one_cell import MARKS, Event, Request, Settled
from qbench.experiment.journal import write_plan
from qbench.experiment.outcomes import machine_of, record_of
from qbench.experiment.plan import Plan, working_order
from qbench.experiment.runner import run
from qbench.experiment.store import Store
from qbench.experiment.view import View
from qbench.files.atomic import write_bytes, write_text
from qbench.records import Cell, Record, Score


class Driver:
    """A plan whose cells are settled elsewhere.

    It is used within `store.at_work()`. shared: False where machines are to be taken for ones that
    do not have the run's folder; by default that is found out.
    """

    def __init__(self, plan: Plan, store: Store, view: View, shared: bool = True) -> None:
        self.plan = plan
        self.store = store
        self.view = view
        self._shared = shared
        self._mark = uuid.uuid4().hex
        self._begun: set[str] = set()
        # What is recorded from here on was settled by this run, or beside it.
        self._before = {cell.id: store.stamp(cell) for cell in plan.cells}
        write_text(store.folder / MARKS / self._mark, "")
        write_plan(store, plan, latency=False)
        # Latencies want a machine for themselves: the same command without an executor adds them.
        grid = plan.grid.model_copy(
            update={
                "latency": False,
                "dtype": plan.cells[0].dtype,
                "device": plan.device.partition(":")[0],
                "out": None,
            }
        )
        self._grid = grid.model_dump_json()
        self._skip()

    def close(self) -> None:
        """Remove the mark of this run."""
        (self.store.folder / MARKS / self._mark).unlink(missing_ok=True)

    def is_settled(self, cell: Cell) -> bool:
        """Whether a cell has got a record since the driver began."""
        return self.store.stamp(cell) != self._before[cell.id]

    def missing(self) -> list[Cell]:
        """The cells without an `ok` record that can be run, in the order in which to begin them."""
        done = {record.id for record in self.store.read_records()[0] if record.status == "ok"}
        order = working_order(replace(self.plan, jobs=max(2, self.plan.jobs)))
        return [cell for cell in order if cell.id not in done | self.plan.skipped.keys()]

    def request(self, cell: Cell) -> Request:
        """What a machine is told that settles a cell."""
        return Request(
            grid=self._grid,
            cell=cell.id,
            threads=self.plan.threads,
            place=str(Path.cwd()),
            folder=str(self.store.folder.resolve()),
            mark=self._mark,
            shared=self._shared,
        )

    def replay(self, events: list[Event]) -> None:
        """Tell the view what a machine has told."""
        by_id = {cell.id: cell for cell in self.plan.cells}
        for name, kind, value in events:
            cell = by_id[name]
            if kind == "begin" or name not in self._begun:
                self._begin(cell)
            if kind == "progress":
                self.view.progress(cell, *value)
            elif kind == "scored":
                self.view.scored(cell, [Score.model_validate(score) for score in value])
            elif kind == "note":
                self.view.note(value)

    def take(self, cell: Cell, settled: Settled) -> None:
        """Keep what came of a cell. StoreError where nothing more can be written."""
        if settled.ends:
            raise StoreError(settled.error)
        _write(self.store.folder, settled.files)
        record = self.store.record(cell)
        if settled.error is not None or record is None or not self.is_settled(cell):
            self.fail(cell, settled.error or "it ended without a record")
            return
        self._finish(record)

    def fail(self, cell: Cell, reason: str) -> None:
        """Record that a cell was not settled, unless somebody else has settled it."""
        record = record_of(self.plan, machine_of(self.plan), cell, "failed", readable(reason))
        self.store.write_record(record)
        self._finish(self.store.record(cell) or record)

    def records(self) -> list[Record]:
        """Of all cells of the plan; StoreError where one is not there."""
        records = []
        for cell in self.plan.cells:
            record = self.store.record(cell)
            if record is None:
                raise StoreError(
                    f"the record of {self.plan.labels[cell.id]} ({cell.id}) is gone from "
                    f"{self.store.folder}; give the same command again"
                )
            records.append(record)
        return records

    def _skip(self) -> None:
        """Record the cells that cannot be run, which takes no work."""
        skipped = tuple(cell for cell in self.plan.cells if cell.id in self.plan.skipped)
        grid = self.plan.grid.model_copy(update={"latency": False})
        if skipped:
            run(replace(self.plan, cells=skipped, jobs=1, grid=grid), self.store, self.view)

    def _begin(self, cell: Cell) -> None:
        self._begun.add(cell.id)
        self.view.begin(cell, self.plan.cells.index(cell) + 1, len(self.plan.cells))

    def _finish(self, record: Record) -> None:
        if record.id not in self._begun:
            self._begin(record.cell)
        self.view.finish(record)


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put what was sent into the run's folder, the record last."""
    for name, data in files.items():
        path = folder / name
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise StoreError(f"a machine has sent the file {name!r}, which is not of a run")
        write_bytes(path, data)
