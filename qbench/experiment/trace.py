"""A Chrome trace of a run, from its files of events: open it in Perfetto or `chrome://tracing`.

Every host is a process of the trace, and cells that overlap are in lanes, the threads. A cell is
one span, and its phases are spans in it. The format is the JSON object of the "Trace Event Format":
complete events (`ph: X`) with times in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qbench.experiment.journal import read_events
from qbench.experiment.store import Store
from qbench.files.atomic import write_text
from qbench.records import Cell

SECOND = 1e6  # microseconds


class Attempt(NamedTuple):
    """One time that a cell was worked on. began, ended: seconds of the epoch."""

    host: str
    name: str
    began: float
    ended: float
    phases: tuple[tuple[str, float, float], ...]
    facts: dict[str, Any]


def write_trace(store: Store, cells: Iterable[Cell], path: Path) -> None:
    """Write the trace of these cells; StoreError where the disk refuses."""
    attempts: list[Attempt] = []
    for cell in cells:
        attempts += read_attempts(list(read_events(store.events(cell.id))), cell.id)
    write_text(path, json.dumps(trace_of(attempts)) + "\n")


def read_attempts(events: Sequence[dict[str, Any]], name: str) -> list[Attempt]:
    """The attempts at one cell, those that were cut off among them. name: the cell's id."""
    starts = [i for i, event in enumerate(events) if event["event"] == "begin"]
    attempts = []
    for start, end in zip(starts, [*starts, len(events)][1:], strict=True):
        attempts.append(_attempt(events[start:end], name))
    return attempts


def trace_of(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """The trace as a JSON object."""
    hosts = sorted({attempt.host for attempt in attempts})
    events: list[dict[str, Any]] = []
    for pid, host in enumerate(hosts, start=1):
        events.append(_named("process_name", pid, 0, host))
        free: list[float] = []  # by lane, when it is
        mine = [attempt for attempt in attempts if attempt.host == host]
        for attempt in sorted(mine, key=lambda attempt: attempt.began):
            lane = next((i for i, end in enumerate(free) if end <= attempt.began), len(free))
            free[lane : lane + 1] = [attempt.ended]
            place = {"pid": pid, "tid": lane + 1}
            events.append(_span(attempt.name, attempt.began, attempt.ended, attempt.facts, place))
            for phase, began, seconds in attempt.phases:
                events.append(_span(phase, began, began + seconds, {}, place))
        events += [_named("thread_name", pid, i + 1, f"worker {i + 1}") for i in range(len(free))]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _attempt(events: Sequence[dict[str, Any]], name: str) -> Attempt:
    """events: of one attempt, the first of which is its `begin`."""
    first = events[0]
    phases = []
    ended = events[-1]["time"]  # unless it was finished before
    facts: dict[str, Any] = {"cell": name, "pid": first["pid"]}
    for event in events:
        if event["event"] == "phase":
            phases.append((event["name"], event["began"], event["seconds"]))
        elif event["event"] == "finish":
            facts |= {"status": event["status"], "reason": event["reason"]}
            ended = event["time"]
        elif event["event"] == "scored":
            for score in event["scores"]:
                facts[f"{event['task']} {score['metric']}"] = score["value"]
    ended = max(ended, first["time"])  # a clock may have been set back
    words = f"{first['model']} {first['label']}"
    return Attempt(first["host"], words, first["time"], ended, tuple(phases), facts)


def _span(
    name: str, began: float, ended: float, facts: dict[str, Any], place: dict[str, int]
) -> dict[str, Any]:
    times = {"ts": began * SECOND, "dur": max(0.0, ended - began) * SECOND}
    return {"ph": "X", "name": name, "cat": "cell" if facts else "phase", **times, **place} | (
        {"args": facts} if facts else {}
    )


def _named(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}
