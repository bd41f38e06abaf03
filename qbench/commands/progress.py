"""The live view of a grid: a line per result on stdout, and the time left on stderr.

On a terminal there is a bar for the whole and one for each cell at work, with its block and loss;
in a log a line now and then.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import TaskID

from qbench.commands.bar import QUIET_SECONDS, time_bar
from qbench.commands.planned import how_long
from qbench.records import Cell, Latency, Record, Score
from qbench.reports.numbers import score_text


class LiveView:
    """One line per cell and task on `out`; on `err` bars, or in a log a line now and then.

    It is the `View` of `qbench.experiment.runner`.
    """

    def __init__(
        self,
        out: Console,
        err: Console,
        seconds: dict[str, float],
        latencies: dict[str, float] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """seconds: what each cell that is to be run adds to the run's time, by id. latencies: what
        measuring its latency adds, after all cells. labels: of cells, where they are not their own.
        """
        self.out = out
        self.err = err
        self.seconds = seconds
        self.latencies = latencies or {}
        self.labels = labels or {}
        self.total = sum(seconds.values()) + sum(self.latencies.values())
        self.started = time.perf_counter()
        self.done = 0.0  # estimated seconds of the cells that are finished
        self._at_work: dict[str, _Part] = {}  # by the cell's id
        self._lock = threading.RLock()  # several cells may be at work
        self._last_line = 0.0
        self._ended: Counter[str] = Counter()  # cells by status
        self._bar = time_bar(err)
        self._task = self._bar.add_task("", total=max(self.total, 1e-9))

    def __enter__(self) -> LiveView:
        """Show the bar, where there is a terminal."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away, however the run ended."""
        self._bar.stop()

    def begin(self, cell: Cell, position: int, cells: int) -> None:
        """A cell starts, the `position`-th of `cells`."""
        self._begin(cell, f"{position}/{cells}", self.seconds)

    def begin_latency(self, cell: Cell) -> None:
        """The latency of a finished cell is being measured."""
        self._begin(cell, "latency", self.latencies)

    def _begin(self, cell: Cell, position: str, seconds: dict[str, float]) -> None:
        with self._lock:
            before = self._at_work.pop(cell.id, None)
            if before is not None:  # it is begun again, such as on another machine
                self._bar.remove_task(before.row)
            row = self._bar.add_task("", total=1.0)
            self._at_work[cell.id] = _Part(position, seconds.get(cell.id, 0.0), row)
            self.progress(cell, 0.0, "loading")

    def progress(self, cell: Cell, fraction: float, text: str) -> None:
        """A cell is done to `fraction`, 0..1; in a log, a line at most every 20 s."""
        with self._lock:
            part = self._at_work.get(cell.id)
            if part is None:
                return
            part.fraction = fraction
            done = self.done + sum(p.fraction * p.seconds for p in self._at_work.values())
            title = f"{part.position} {cell.model} {self._label(cell)}: {text}"
            self._bar.update(part.row, completed=fraction, description=title)
            self._show(done, title)

    def _end(self, cell: Cell) -> str:
        """A cell, or its latency, is done; its position, and nothing where it was not at work."""
        part = self._at_work.pop(cell.id, None)
        if part is None:
            return ""
        self._bar.remove_task(part.row)
        self.done += part.seconds
        return part.position

    def _show_whole(self, done: float) -> None:
        """The bar of the whole run. done: estimated seconds of what is finished."""
        ended = ", ".join(f"{count} {status}" for status, count in self._ended.items())
        whole = f"{ended or 'nothing done yet'}, {len(self._at_work)} at work"
        self._bar.update(self._task, completed=done, description=whole)

    def _show(self, done: float, title: str) -> None:
        """done: as above. title: what a log says."""
        self._show_whole(done)
        now = time.perf_counter()
        if self.err.is_terminal or now - self._last_line <= QUIET_SECONDS:
            return
        self._last_line = now
        self.err.print(
            f"{title}, about {how_long(self._seconds_left(done, now))} left",
            markup=False,
            soft_wrap=True,
        )

    def _seconds_left(self, done: float, now: float) -> float:
        """From the estimate, corrected by the pace so far once a twentieth is done."""
        pace = 1.0
        if done > self.total / 20:
            pace = (now - self.started) / done
        return (self.total - done) * pace

    def scored(self, cell: Cell, scores: Sequence[Score]) -> None:
        """A task of the present cell is done: one line with its scores."""
        task = scores[0].task
        words = []
        for score in scores:
            if score.task == task:
                words.append(f"{_metric(score)} {score_text(score)}")
        self._line(f"       {self._label(cell)}  {task}: {', '.join(words)}")

    def note(self, text: str) -> None:
        """Something that people should know, and that ends nothing."""
        self.err.print(f"warning: {text}", markup=False, highlight=False, soft_wrap=True)

    def waiting(self, cells: int) -> None:
        """So many cells are left, and other runners work on them."""
        self._show(self.done, f"waiting for other runners: {cells} cells are at work")

    def finish(self, record: Record) -> None:
        """A cell is done, and its record written: one line with its bits and times."""
        with self._lock:
            position = self._end(record.cell)
            self._ended[record.status] += 1
            self._show_whole(self.done)
        outcome = f"{record.status}: {' '.join((record.reason or '').split())}"
        if record.status == "ok":
            outcome = _costs(record)
        cell = record.cell
        self._line(f"{position:>6} {cell.model}  {self._label(cell)}  {outcome}  {record.id}")

    def measured(self, record: Record) -> None:
        """The latency of a finished cell is known: one line with what a token costs."""
        with self._lock:
            self._end(record.cell)
        cell = record.cell
        if record.latency is not None:
            what = "  ".join(_latency(record.latency))
            self._line(f"latency {cell.model}  {self._label(cell)}  {what}")

    def _label(self, cell: Cell) -> str:
        return self.labels.get(cell.id, cell.label)

    def _line(self, text: str) -> None:
        with self._lock:
            self.out.print(text, markup=False, highlight=False, soft_wrap=True)


@dataclass
class _Part:
    """A cell, or its latency, at work: its place in the run, what it adds to it, and how far it is.

    seconds: estimated. row: its bar. fraction: 0..1.
    """

    position: str
    seconds: float
    row: TaskID
    fraction: float = 0.0


def _costs(record: Record) -> str:
    costs = []
    bits = record.bits_per_weight.get("total")
    if bits is not None:
        costs.append(f"{bits:.2f} bits/weight")
    if record.quantize_seconds:
        costs.append(f"quantized in {record.quantize_seconds:.1f} s")
    if record.evaluate_seconds:
        costs.append(f"evaluated in {record.evaluate_seconds:.1f} s")
    return "  ".join(costs)


def _latency(latency: Latency) -> list[str]:
    """Its figures in words, and what is missing."""
    words = []
    for rows in latency.rows:
        times = latency.milliseconds(rows)
        if times is not None:
            packed, dense = times
            words.append(f"batch {rows}: {packed:.3g} ms ({dense / packed:.2f}x)")
    if latency.decoding is not None:
        packed, dense = latency.decoding.packed[0], latency.decoding.dense[0]
        words.append(f"{packed:.1f} tokens/s ({packed / dense:.2f}x)")
    if latency.reason is not None:
        words.append(f"not measured: {' '.join(latency.reason.split())}")
    return words


def _metric(score: Score) -> str:
    return score.metric if score.filter == "none" else f"{score.metric} ({score.filter})"
