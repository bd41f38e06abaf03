"""What the process of a method's checks does: it tells the plan, and then verdict by verdict."""

from __future__ import annotations

import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from qbench.checks.methods import CHECKS, run_check
from qbench.errors import QbenchError
from qbench.isolation import Tell, limit_memory
from qbench.registry import load_plugin, method_class

ROOM = 3 << 30  # bytes of address space that the checks may take on top of the imports


def run(tell: Tell, target: str, decided: frozenset[int], only: tuple[str, ...]) -> None:
    """Run the planned checks, but for those whose numbers are decided already.

    Events: `error`; or `plan`, then a `verdict` for every check.

    target: a method's name, or a Python file that defines methods. only: names of checks; empty for
    all.
    """
    # One thread: the stacks and heaps of many would take the address space that is left.
    torch.set_num_threads(1)
    limit_memory(ROOM)
    warnings.simplefilter("ignore")
    try:
        names = load_plugin(Path(target)) if target.endswith(".py") else [target]
        for name in names:
            method_class(name)
    except QbenchError as error:
        tell({"error": str(error)})
        return
    plan = []
    for name in names:
        for check in CHECKS:
            if not only or check.__name__ in only:
                plan.append((name, check))
    tell({"plan": [(name, check.__name__) for name, check in plan]})
    for number, (name, check) in enumerate(plan):
        if number not in decided:
            tell({"verdict": asdict(run_check(name, check))})
