"""The fastest launches on this GPU, measured; the tables that keep them are part of the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from gpu_report.latency import BITS, GROUP, shapes
from qbench.latency.gpu import tune
from qbench.latency.request import Request


def run(write: Callable[[Any], None], quick: bool, seconds: float) -> bool:
    """Tune shape by shape, with the tables stored after each of them."""
    for shape in shapes(quick):
        tables = tune(Request([shape], BITS, ["binary"], GROUP))
        write({str(path): json.loads(path.read_text()) for path in tables})
        print(f"tuned {shape}", flush=True)
    return True
