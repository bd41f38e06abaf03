"""What a person sees while a grid runs: lines on stdout that can be searched, and time left on stderr."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from qbench.records import Cell, Record, Score
from qbench.reports.headline import number

QUIET_SECONDS = 20.0  # between two lines in a log


class LiveView:
    """A bar on a terminal; in a log, one line per cell and task, and now and then one of progress."""

    def __init__(self, out: Console, err: Console, seconds: dict[str, float]) -> None:
        """seconds: the estimate for each cell that is to be run, by id."""
        self.out, self.err, self.seconds = out, err, seconds
        self.started = time.perf_counter()
        self.done = 0.0
        self.cell: Cell | None = None
        self.position = ""
        self._spoke = 0.0
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=err,
            disable=not err.is_terminal,
            speed_estimate_period=600,
        )
        self._task = self._bar.add_task("", total=max(sum(seconds.values()), 1e-9))

    def __enter__(self) -> LiveView:
        """Shows the bar."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Takes it away."""
        self._bar.stop()

    def begin(self, cell: Cell, position: int, cells: int) -> None:
        """Name the cell."""
        self.cell, self.position = cell, f"{position}/{cells}"
        self.progress(0.0, "loading")

    def progress(self, fraction: float, text: str) -> None:
        """Move the bar; in a log, say it every now and then."""
        if self.cell is None:
            return
        at = self.done + fraction * self.seconds.get(self.cell.id, 0.0)
        title = f"{self.position} {self.cell.model} {self.cell.label}: {text}"
        self._bar.update(self._task, completed=at, description=title)
        now = time.perf_counter()
        if not self.err.is_terminal and now - self._spoke > QUIET_SECONDS:
            self._spoke = now
            total = sum(self.seconds.values())
            pace = (now - self.started) / at if at > total / 20 else 1.0  # at first, as estimated
            self.err.print(
                f"{title}, about {(total - at) * pace / 60:.0f} min left",
                markup=False,
                soft_wrap=True,
            )

    def scored(self, cell: Cell, scores: Sequence[Score]) -> None:
        """One line per task."""
        shown = ", ".join(
            f"{_named(s)} {number(s.value, s.stderr, s.metric)}"
            for s in scores
            if s.task == scores[0].task
        )
        self._line(f"       {scores[0].task}: {shown}")

    def finish(self, record: Record) -> None:
        """One line per cell."""
        if self.cell is not None:
            self.done += self.seconds.get(self.cell.id, 0.0)
        bits = record.bits_per_weight.get("total")
        facts = [f"{bits:.2f} bits/weight" if bits is not None else ""]
        facts += [
            f"quantized in {record.quantize_seconds:.1f} s" if record.quantize_seconds else ""
        ]
        facts += [
            f"evaluated in {record.evaluate_seconds:.1f} s" if record.evaluate_seconds else ""
        ]
        outcome = (
            "  ".join(fact for fact in facts if fact)
            if record.status == "ok"
            else f"{record.status}: {record.reason}"
        )
        self._line(
            f"{self.position:>6} {record.cell.model}  {record.cell.label}  {outcome}  {record.id}"
        )

    def _line(self, text: str) -> None:
        self.out.print(text, markup=False, highlight=False, soft_wrap=True)


def _named(score: Score) -> str:
    return score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
