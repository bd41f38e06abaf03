"""The parts of a cell's work, and how long each of them took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qbench.isolation import Tell


@dataclass
class Phases:
    """Tells how long every part took, however it ended.

    doing: the innermost part at work, or the one that an error has ended.
    """

    tell: Tell
    doing: str = "load"

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """The part of this name."""
        before = self.doing
        self.doing = name
        began = time.time()
        started = time.perf_counter()
        try:
            yield
            self.doing = before
        finally:
            seconds = time.perf_counter() - started
            self.tell({"phase": name, "began": began, "seconds": seconds})
