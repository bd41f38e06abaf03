"""Checks of a method in a process of their own: a hang, a crash or an exit is a verdict too."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from qbench.checks.verdict import Verdict
from qbench.errors import ConfigError
from qbench.isolation import Isolated, preload

TIME_LIMIT = 60.0  # seconds for one check, see `patience`
LOADING = 120.0  # seconds for imports and the target's own, before the first check; the same
LOST = 3  # checks of a method that may end the process; the rest is then not run


def check_isolated(
    target: str, time_limit: float = TIME_LIMIT, only: tuple[str, ...] = ()
) -> Iterator[Verdict]:
    """The verdicts over a method, or over all methods that a file defines, one by one.

    target: a method's name or the path of a Python file. time_limit: seconds for one check, more on
    a busy machine (`patience`); the first that reads the tour also pays for it. only: names of
    checks, empty for all. The process is started again after a check that ended it. ConfigError
    where the target cannot be loaded.
    """
    preload("qbench.checks.worker")
    from qbench.checks import worker

    if target.endswith(".py"):
        target = str(Path(target).resolve())
    decided: dict[int, Verdict] = {}
    lost: Counter[str] = Counter()
    number = 0
    while True:
        arguments = (target, frozenset({*decided, *range(number)}), only)
        with Isolated(worker.run, arguments) as process:
            plan = _plan(process, target)
            while number < len(plan):
                limit = patience(time_limit)
                verdict = decided.get(number) or _verdict(process, limit)
                if verdict is None:
                    reason = process.ending or f"gave no answer within {limit:.0f} s"
                    break
                yield verdict
                number += 1
            else:
                return
        subject = plan[number][0]
        lost[subject] += 1
        decided.update(_after_a_loss(plan, number, reason, last=lost[subject] == LOST))


def patience(seconds: float) -> float:
    """Seconds to wait for what takes at most so many on an idle machine.

    More by as many times as there are programs at work for each processor.
    """
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def _plan(process: Isolated, target: str) -> list[tuple[str, str]]:
    """(method, check) for all checks. ConfigError where the target cannot be loaded."""
    limit = patience(LOADING)
    event = process.next(limit)
    if event is None:
        reason = process.ending or f"gave no answer within {limit:.0f} s"
        raise ConfigError(f"{target!r} cannot be loaded: its import {reason}")
    if "error" in event:
        raise ConfigError(event["error"])
    return [(name, check) for name, check in event["plan"]]


def _verdict(process: Isolated, time_limit: float) -> Verdict | None:
    """The next one; None where the process ended before it, or it did not come in time."""
    event = process.next(time_limit)
    return None if event is None else Verdict(**event["verdict"])


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
