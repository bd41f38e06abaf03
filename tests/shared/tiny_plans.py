"""Plans of a few cells on a tiny model, and a view of their run, for the tests of runners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qbench.experiment.grid import Grid
from qbench.experiment.plan import Plan, make_plan


class Silent:
    """A view that keeps what it is told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *values: self.told.append((name, *values))


def tiny_plan(folder: Path, *methods: str, **changes: Any) -> Plan:
    """Of the methods at 2 and 4 bits, with windows of 64 tokens. changes: of the grid."""
    facts = {
        "model": (str(folder),),
        "methods": methods,
        "bits": (2, 4),
        "group_size": 32,
        "tasks": ("wikitext",),
        "data": "mini",
        "dtype": "float32",
        "set": {"wikitext": {"length": ("64",)}},
        "latency": False,
        "workers": 1,
    }
    return make_plan(Grid(**facts | changes))
