"""What it costs to quantize blocks of 8B size on this GPU, method by method."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from qbench.errors import QbenchError


def run(write: Callable[[Any], None], quick: bool, seconds: float) -> bool:
    """Time the methods on a random model."""
    raise QbenchError("there is no pipeline section yet")
