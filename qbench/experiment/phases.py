"""The parts of a cell's work, of which it is told how long each took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qbench.isolation import Tell


@dataclass
class Phases:
    """Tells the time of every part, however it ended.

    doing: the part that is at work, the innermost; where an error has ended it, that one.
    """

    tell: Tell
    doing: str = "load"

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """The part of this name."""
        before, self.doing = self.doing, name
        began, started = time.time(), time.perf_counter()
        try:
            yield
            self.doing = before
        finally:
            seconds = time.perf_counter() - started
            self.tell({"phase": name, "began": began, "seconds": seconds})
