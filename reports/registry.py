"""Where reports are found: a module of this folder with a function `write` is a report.

    write(records, folder) -> paths

`records` are all records of a run, at least one, in a list of its own. The function writes its
files into `folder` by `qbench.files.atomic`, the same bytes for the same records, and returns the
list of their paths. A module that sets TAKES_LONG begins first where reports of many records are
written at once.
"""

from __future__ import annotations

import gc
import importlib
import os
import pkgutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from qbench.comparison.pairs import shared_pairs
from qbench.errors import ConfigError, QbenchError, StoreError
from qbench.files.atomic import refusal_of, require_folders
from qbench.records import Record
from qbench.reports.headline import require

PACKAGE = "qbench.reports"
Writer = Callable[[Sequence[Record], Path], list[Path]]
Outcome = tuple[list[Path], QbenchError | None]
FOLDERS = ("cells", "methods", "pictures")  # of the run's folder, that reports write into
MANY = 200  # records, whose reports take seconds
_of_this_fork: Callable[[str], Outcome]


def writers() -> dict[str, Writer]:
    """Every report by the name of its module, in alphabetical order."""
    reports: dict[str, Writer] = {}
    package = importlib.import_module(PACKAGE)
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        try:
            module = importlib.import_module(f"{PACKAGE}.{info.name}")
        except (Exception, SystemExit) as error:  # the other reports are written nevertheless
            reports[info.name] = _raising(error)
            continue
        if callable(getattr(module, "write", None)):
            reports[info.name] = module.write
    return reports


def _raising(error: BaseException) -> Writer:
    """In the place of a report that cannot be imported."""

    def write(records: Sequence[Record], folder: Path) -> list[Path]:
        raise error

    return write


def write_reports(records: Sequence[Record], folder: Path, processes: int = 1) -> list[Path]:
    """Write every report into a folder, each file whole or not at all; their paths.

    processes: that write, where there are MANY records. They are forks of this one, which
    must then have no threads that hold locks; where forks are not safe, it is one process.
    DataError without records, and StoreError where the folder cannot be written. A report that
    fails does not keep the others from being written; then ConfigError names it, or StoreError the
    file that the disk refused.
    """
    require(records)
    require_report_place(folder)
    forked = processes > 1 and len(records) >= MANY and sys.platform == "linux"
    write = _written_by_forks if forked else _written_here
    paths: list[Path] = []
    failure: QbenchError | None = None
    with shared_pairs():
        for written, error in write(records, folder, processes):
            paths += written
            failure = error or failure
    if failure is not None:
        raise failure
    return paths


def require_report_place(folder: Path) -> None:
    """StoreError, once for all reports, where nothing can be written in the folder or one of
    FOLDERS, or that is a link to somewhere else.
    """
    refusal = refusal_of(folder)
    if refusal is not None:
        raise StoreError(
            f"the report of {folder} is written into it, and it cannot be written ({refusal}); "
            "copy it to a place that you can write to, and report on the copy"
        )

    home = os.path.realpath(folder)
    for name in FOLDERS:
        target = Path(os.path.realpath(folder / name))
        if not target.is_relative_to(home):
            raise StoreError(
                f"{folder / name} is a link out of the run's folder, to {target}, and a report is "
                "written inside of it alone; remove the link"
            )
    require_folders(folder, FOLDERS)


def _written_here(records: Sequence[Record], folder: Path, _: int) -> Iterator[Outcome]:
    for name, write in writers().items():
        yield _outcome(name, write, records, folder)


def _written_by_forks(records: Sequence[Record], folder: Path, processes: int) -> Iterator[Outcome]:
    """The same. A fork has the records and the reports already, so that names are enough."""
    reports = writers()
    gc.freeze()  # else each fork walks through the records, and copies what it touches, again

    def write(name: str) -> Outcome:
        return _outcome(name, reports[name], records, folder)

    longest_first = sorted(reports, key=lambda name: not _takes_long(reports[name]))
    with ProcessPoolExecutor(processes, get_context("fork"), _become, (write,)) as pool:
        outcomes = dict(zip(longest_first, pool.map(_in_fork, longest_first), strict=True))
    for name in reports:
        yield outcomes[name]


def _takes_long(write: Writer) -> bool:
    """Whether its module says that a report takes as long as all others together."""
    return bool(getattr(sys.modules[write.__module__], "TAKES_LONG", False))


def _become(write: Callable[[str], Outcome]) -> None:
    """Called once in each fork, which ends at once where the pool tells it to."""
    global _of_this_fork
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _of_this_fork = write


def _in_fork(name: str) -> Outcome:
    return _of_this_fork(name)


def _outcome(name: str, write: Writer, records: Sequence[Record], folder: Path) -> Outcome:
    """The paths that a report has written, or what kept it from that."""
    try:
        paths = write(list(records), folder)  # its own list, so that others have all records
        if not (isinstance(paths, list) and all(isinstance(path, Path) for path in paths)):
            raise TypeError(f"write gave {paths!r}, and not the list of its paths")
        return paths, None
    except QbenchError as error:
        return [], error
    except (Exception, SystemExit) as error:  # a report may be anybody's
        reason = f"{type(error).__name__}: {error}"
        return [], ConfigError(
            f"report {name!r} cannot be written: {reason}; mend reports/{name}.py"
        )
