"""The data that a command uses, and the line in which it says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from qbench.models.identity import Announce
from qbench.models.source import BUILT_IN
from qbench.tasks.contract import Task
from qbench.tasks.data import Source, choose, chosen, open_source
from qbench.tasks.declaration import Declaration


class ChosenData(NamedTuple):
    """The data of a command.

    source: opened. data: the value of `--data` that opens it again. warning: why it is not what one
    would expect, or None.
    """

    source: Source
    data: str
    warning: str | None


def choose_data(data: str, models: Sequence[str], tables: Sequence[str]) -> ChosenData:
    """The data for these models and tables (`qbench.tasks.data.choose`). data: as `--data`.

    DataError where there is no such data.
    """
    choice = choose(data, all(name in BUILT_IN for name in models), tables)
    # Where QBENCH_DATA names a folder, it is opened by that, so that an error names it.
    source = open_source(data if chosen(data) == choice.data else choice.data)
    return ChosenData(source, choice.data, choice.warning)


def announced_data(
    data: str, models: Sequence[str], tables: Sequence[str], announce: Announce
) -> ChosenData:
    """The same as `choose_data`; also announces it in one line."""
    choice = choose_data(data, models, tables)
    announce(data_line(choice.source, choice.warning))
    return choice


def tables_of(tasks: Sequence[Task]) -> list[str]:
    """The tables that tasks read. A task of another package may have data of its own."""
    return [task.table_name for task in tasks if isinstance(task, Declaration)]


def data_line(source: Source, warning: str | None) -> str:
    """The first line of a command: its data, and a warning where they are stand-ins."""
    line = f"data  {source.describe()}"
    return line if warning is None else f"{line}; warning: {warning}"
