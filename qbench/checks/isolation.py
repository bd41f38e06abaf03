"""Checks of a method in a process of their own: a hang, a crash or an exit is a verdict too."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from qbench.checks.verdict import Verdict
from qbench.errors import ConfigError

TIME_LIMIT = 60.0  # seconds for one check
LOADING = 120.0  # seconds for imports and the target's own, before the first check
LOST = 3  # checks of a method that may end the process; the rest is then not run
POLL = 0.02  # seconds between two looks at the results


def check_isolated(
    target: str, time_limit: float = TIME_LIMIT, only: tuple[str, ...] = ()
) -> Iterator[Verdict]:
    """The verdicts over a method, or over all methods that a file defines, one by one.

    target: a method's name or the path of a Python file. time_limit: seconds for one check; the
    first that reads the tour also pays for it. only: names of checks, empty for all. The process is
    started again after a check that ended it. ConfigError where the target cannot be loaded.
    """
    if target.endswith(".py"):
        target = str(Path(target).resolve())
    with tempfile.TemporaryDirectory(prefix="qbench-check-") as folder:
        results = Path(folder) / "results.jsonl"
        decided: dict[int, Verdict] = {}
        lost: Counter[str] = Counter()
        number = 0
        while True:
            results.write_text("")
            worker = _Worker(target, results, frozenset({*decided, *range(number)}), only)
            try:
                plan = worker.plan()
                while number < len(plan):
                    verdict = decided.get(number)
                    if verdict is None:
                        verdict, reason = worker.verdict(number, time_limit)
                    if verdict is None:
                        break
                    yield verdict
                    number += 1
                else:
                    return
            finally:
                worker.end()
            subject = plan[number][0]
            lost[subject] += 1
            decided.update(_after_a_loss(plan, number, reason, last=lost[subject] == LOST))


def _after_a_loss(
    plan: list[tuple[str, str]], number: int, reason: str, last: bool
) -> dict[int, Verdict]:
    """What is decided once check `number` has ended the process: it, and what would end it again.

    last: whether the method has had its last try.
    """
    from qbench.checks.methods import TOUR_CHECKS

    on_tour = {check.__name__ for check in TOUR_CHECKS}
    subject, check = plan[number]
    decided = {number: Verdict(subject, check, "FAIL", reason)}
    for later in range(number + 1, len(plan)):
        if plan[later][0] != subject:
            break
        if last:
            why = f"not run: {LOST} checks before it ended the process or ran out of time"
        elif check in on_tour and plan[later][1] in on_tour:
            why = f"not run: {check}, which makes the same calls, {reason}"
        else:
            continue
        decided[later] = Verdict(*plan[later], "FAIL", why)
    return decided


class _Worker:
    """A running `qbench.checks.worker` and the events that it has written so far."""

    def __init__(
        self, target: str, results: Path, decided: frozenset[int], only: tuple[str, ...]
    ) -> None:
        from qbench.checks import worker

        self.target = target
        self.results = results
        self.process = _context().Process(
            target=worker.run, args=(target, str(results), decided, only)
        )
        self.process.start()

    def plan(self) -> list[tuple[str, str]]:
        """(method, check) for all checks. ConfigError where the target cannot be loaded."""
        event, reason = self._event(0, LOADING)
        if event is None:
            raise ConfigError(f"{self.target!r} cannot be loaded: its import {reason}")
        if "error" in event:
            raise ConfigError(event["error"])
        return [(name, check) for name, check in event["plan"]]

    def verdict(self, number: int, time_limit: float) -> tuple[Verdict | None, str]:
        """The verdict of a check, or None and why there is none."""
        event, reason = self._event(number, time_limit, "number")
        return (None, reason) if event is None else (Verdict(**event["verdict"]), "")

    def _event(
        self, number: int, time_limit: float, key: str | None = None
    ) -> tuple[dict[str, Any] | None, str]:
        """The first event, or that whose `key` is `number`; None and why where it does not come."""
        deadline = time.monotonic() + time_limit
        while True:
            alive = self.process.is_alive()  # looked at before the file: its last words count
            for line in self.results.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    event = json.loads(line)
                    if key is None or event.get(key) == number:
                        return event, ""
            if not alive:
                return None, f"ended the process with exit code {self.process.exitcode}"
            if time.monotonic() > deadline:
                return None, f"gave no answer within {time_limit:g} s"
            time.sleep(POLL)

    def end(self) -> None:
        """End the process and all that it left behind."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()
        self.process.close()


def _context() -> Any:
    """A server that imports torch once and forks a fresh process each time, if there are forks."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["qbench.checks.worker"])
    return context
