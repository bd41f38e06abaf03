"""Where reports are found: a module of this folder with a function `write` is a report.

    write(records, folder) -> paths

`records` are all records of a run, at least one. The function writes its files into `folder` by
`qbench.files.atomic`, the same bytes for the same records, and returns their paths.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path

from qbench.comparison.pairs import shared_pairs
from qbench.errors import ConfigError, QbenchError
from qbench.records import Record
from qbench.reports.headline import require

PACKAGE = "qbench.reports"
Writer = Callable[[Sequence[Record], Path], list[Path]]


def writers() -> dict[str, Writer]:
    """Every report by the name of its module, in alphabetical order."""
    reports: dict[str, Writer] = {}
    package = importlib.import_module(PACKAGE)
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"{PACKAGE}.{info.name}")
        if callable(getattr(module, "write", None)):
            reports[info.name] = module.write
    return reports


def write_reports(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write every report into a folder, each file whole or not at all; their paths.

    DataError without records. A report that fails does not keep the others from being written;
    then ConfigError names it, or StoreError the file that the disk refused.
    """
    require(records)
    paths: list[Path] = []
    failure: QbenchError | None = None
    with shared_pairs():
        for name, write in writers().items():
            try:
                paths += write(records, folder)
            except QbenchError as error:
                failure = error
            except Exception as error:  # a report may be anybody's
                reason = f"{type(error).__name__}: {error}"
                failure = ConfigError(
                    f"report {name!r} cannot be written: {reason}; mend reports/{name}.py"
                )
    if failure is not None:
        raise failure
    return paths
