"""What a run tells whoever shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qbench.records import Cell, Record, Score


class View(Protocol):
    """What shows the events of a run. Several threads call it where several cells are at work."""

    def begin(self, cell: Cell, position: int, cells: int) -> None:
        """A cell starts."""

    def progress(self, cell: Cell, fraction: float, text: str) -> None:
        """Part of a cell is done, 0..1."""

    def scored(self, cell: Cell, scores: Sequence[Score]) -> None:
        """A task of a cell is done."""

    def note(self, text: str) -> None:
        """A sentence for people; the cell goes on."""

    def waiting(self, cells: int) -> None:
        """So many cells are left, and other runners work on them."""

    def finish(self, record: Record) -> None:
        """A cell is done, and its record written."""

    def begin_latency(self, cell: Cell) -> None:
        """The latency of a finished cell is being measured."""

    def measured(self, record: Record) -> None:
        """The latency of a finished cell is known, or why it is not, and stands in its record."""
