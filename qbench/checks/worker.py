"""The process that a method's checks run in: one line of JSON per event is appended to a file.

A file that it opens by its absolute path for every line: what a method prints, closes or where it
changes to makes no difference.
"""

from __future__ import annotations

import json
import os
import warnings
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from qbench.checks.methods import CHECKS, run_check
from qbench.errors import QbenchError
from qbench.registry import load_plugin, method_class

ROOM = 3 << 30  # bytes of address space that the checks may take on top of the imports


def run(target: str, results: str, decided: frozenset[int], only: tuple[str, ...]) -> None:
    """Run the planned checks, but for those whose numbers are decided already.

    Events: `error`; or `plan`, then a `number` and its `verdict` for every check.

    target: a method's name, or a Python file that defines methods. results: the file, absolute.
    only: names of checks; empty for all.
    """
    os.setsid()  # a group of its own, so that everything it leaves behind can be ended with it
    # One thread: the stacks and heaps of many would take the address space that is left.
    torch.set_num_threads(1)
    _limit_memory()
    _silence()
    own = os.getpid()
    try:
        names = load_plugin(Path(target)) if target.endswith(".py") else [target]
        for name in names:
            method_class(name)
    except QbenchError as error:
        _write(results, own, {"error": str(error)})
        return
    plan = []
    for name in names:
        for check in CHECKS:
            if not only or check.__name__ in only:
                plan.append((name, check))
    _write(results, own, {"plan": [(name, check.__name__) for name, check in plan]})
    for number, (name, check) in enumerate(plan):
        if number not in decided:
            verdict = run_check(name, check)
            _write(results, own, {"number": number, "verdict": asdict(verdict)})
    os._exit(0)  # at once: exit handlers and threads of a method would have the last word


def _write(results: str, own: int, event: dict[str, Any]) -> None:
    """Append one line; a process that the method forked ends here instead."""
    if os.getpid() != own:
        os._exit(0)
    line = (json.dumps(event) + "\n").encode()
    descriptor = os.open(results, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, line)
    os.close(descriptor)


def _limit_memory() -> None:
    """An endless allocation ends in a MemoryError, not in the machine's."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _silence() -> None:
    """Neither warnings nor what a method prints come between the verdicts."""
    warnings.simplefilter("ignore")
    with open(os.devnull, "r+b") as nothing:
        for descriptor in (0, 1, 2):
            os.dup2(nothing.fileno(), descriptor)
