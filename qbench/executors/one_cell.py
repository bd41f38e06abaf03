"""One cell on whatever machine it was sent to: a runner with a plan of this cell alone.

The machine makes the plan anew, from the grid as it was resolved. So paths, plug-ins and data are
its own, and where its model, data or code are others, the cell's id is not in its plan, and that is
said. Where the run's folder is there, too, it is written to, beside all other runners. Elsewhere
the cell is run in a folder of this machine, and its files are sent back.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from qbench.errors import ConfigError, StoreError, reason_of
from qbench.experiment.grid import Grid
from qbench.experiment.plan import Plan, make_plan
from qbench.experiment.preloaded import MODULES
from qbench.experiment.runner import run
from qbench.experiment.store import RUNNERS, Store
from qbench.files.claims import claimed, claimed_in_time, is_claimed
from qbench.isolation import preload
from qbench.records import Cell, Record, Score

MARKS = "executors"  # in the run's folder, with a file by which a machine knows that folder
Event = tuple[str, str, Any]  # the cell's id, the name of a View's method, its JSON-able argument
_held = ExitStack()  # folders of this machine that this process keeps until it ends
_held_folders: set[Path] = set()  # whose they are


@dataclass(frozen=True)
class Request:
    """What a machine is told.

    grid: resolved, as JSON. cell: its id. threads: of the processor. place: the working directory.
    folder: of the run; it is there, too, where it holds the file `mark`. shared: False to take it
    for another folder in any case.
    """

    grid: str
    cell: str
    threads: int
    place: str
    folder: str
    mark: str
    shared: bool = True


@dataclass(frozen=True)
class Settled:
    """What came of it.

    error: why there is no record. ends: whether no other cell would fare better. files: by their
    paths in the run's folder, what is not written there yet; the record is the last.
    """

    error: str | None = None
    ends: bool = False
    files: dict[str, bytes] = field(default_factory=dict)


def settle(request: Request, tell: Callable[[Event], object] = lambda event: None) -> Settled:
    """Run a cell that has no record yet; whatever goes wrong is in what is returned.

    tell: is called with what a view would be told on the way.
    """
    try:
        with suppress(OSError):
            os.chdir(request.place)
        shared = _is_shared(request)
        folder = Path(request.folder) if shared else _own_folder(request)
        preload(*MODULES)
        plan = _plan_of(request.grid, request.cell, request.threads)
        if not shared:
            _keep_what_cells_share(folder)
        store = Store(folder)
        run(plan, store, Telling(request.cell, tell))
        return Settled() if shared else Settled(files=_files(store, plan.cells[0]))
    except StoreError as error:
        return Settled(reason_of(error), ends=True)
    except Exception as error:
        return Settled(reason_of(error))


class Telling:
    """A view that passes on what happens to a cell."""

    def __init__(self, cell: str, tell: Callable[[Event], object]) -> None:
        self._cell = cell
        self._tell = tell

    def begin(self, cell: Cell, position: int, cells: int) -> None:
        self._tell((self._cell, "begin", None))

    def progress(self, cell: Cell, fraction: float, text: str) -> None:
        self._tell((self._cell, "progress", [fraction, text]))

    def scored(self, cell: Cell, scores: Sequence[Score]) -> None:
        told = [score.model_dump(mode="json") for score in scores]
        self._tell((self._cell, "scored", told))

    def note(self, text: str) -> None:
        self._tell((self._cell, "note", text))

    def waiting(self, cells: int) -> None:
        """Of no interest elsewhere."""

    def finish(self, record: Record) -> None:
        """Its record says it."""

    def begin_latency(self, cell: Cell) -> None:
        """Is not measured here."""

    def measured(self, record: Record) -> None:
        """Is not measured here."""


def _is_shared(request: Request) -> bool:
    return request.shared and (Path(request.folder) / MARKS / request.mark).is_file()


def _own_folder(request: Request) -> Path:
    """A folder of this machine for all cells of a run that come here."""
    return Path(tempfile.gettempdir()) / f"qbench-{_user()}-{request.mark}"


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


@lru_cache(maxsize=2)
def _whole_plan(grid: str) -> Plan:
    return make_plan(Grid.model_validate_json(grid))


def _plan_of(grid: str, cell: str, threads: int) -> Plan:
    """The plan of one cell; ConfigError where this machine would compute another."""
    plan = _whole_plan(grid)
    mine = tuple(each for each in plan.cells if each.id == cell)
    if not mine:
        raise ConfigError(
            f"{os.uname().nodename} has no cell {cell} in its plan: its model, data, code or "
            "processor differ from those of the machine that sent it; make them equal"
        )
    return replace(plan, cells=mine, jobs=1, threads=threads)


def _keep_what_cells_share(folder: Path) -> None:
    """Be a runner of this folder until the process ends, so that the next cell finds it all.

    Folders that killed processes have left are removed.
    """
    if folder in _held_folders:
        return
    _held.enter_context(_at_work(folder))
    _held_folders.add(folder)
    atexit.register(_held.close)
    ours = re.compile(rf"qbench-{_user()}-[0-9a-f]{{32}}")
    for path in folder.parent.glob("qbench-*"):
        with suppress(FileNotFoundError):  # another one was faster
            if ours.fullmatch(path.name) and path.lstat().st_uid == _user():
                _remove_unless_used(path)


@contextmanager
def _at_work(folder: Path) -> Iterator[None]:
    """Claim a folder of this machine; the last that works there removes it."""
    with claimed_in_time(_runners(folder), shared=True):
        yield
    _remove_unless_used(folder)


def _remove_unless_used(folder: Path) -> None:
    """Remove a folder of this machine, unless it is in use or there are no locks to tell by."""
    runners = _runners(folder)
    with suppress(StoreError), claimed(runners) as alone:
        if alone and is_claimed(runners):
            shutil.rmtree(folder, ignore_errors=True)


def _runners(folder: Path) -> Path:
    return Store(folder, to_write=False).claim(RUNNERS)


def _files(store: Store, cell: Cell) -> dict[str, bytes]:
    """What a cell has left, by its path in the folder; its artifact is removed, as it is large."""
    paths = sorted((store.folder / "samples" / cell.id).glob("*"))
    paths += [store.events(cell.id), store.log(cell)]
    paths.append(store.folder / "records" / f"{cell.id}.json")
    files = {str(p.relative_to(store.folder)): p.read_bytes() for p in paths if p.is_file()}
    if cell.scheme is not None:
        shutil.rmtree(store.artifact(cell), ignore_errors=True)
    return files
