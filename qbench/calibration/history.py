"""The history of a training: the losses of its steps, and of the states that were judged."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class History:
    """losses: of every step. judged: of the start and of every epoch. stopped: why it ended."""

    losses: list[float]
    judged: list[float]
    stopped: str = "trained to the end"

    @property
    def best_epoch(self) -> int:
        """The first epoch with the lowest judged loss; 0 is the start.

        A loss that is not finite is never the lowest.
        """
        best = 0  # the start, which is finite (see `reconstruct`)
        for epoch, loss in enumerate(self.judged):
            if math.isfinite(loss) and loss < self.judged[best]:
                best = epoch
        return best

    def line(self, epoch: int, epochs: int) -> str:
        """The progress in words, for people."""
        share = self.judged[-1] / (self.judged[0] or 1)  # a perfect start has a loss of 0
        return f"epoch {epoch + 1}/{epochs}, loss {share:.2f} of the start"

    def log(self) -> dict[str, Any]:
        """The history, JSON-able, for the record."""
        best = self.best_epoch
        return {
            "initial": _short(self.judged[0]),
            "final": _short(self.judged[best]),
            "best_epoch": best,
            "stopped": self.stopped,
            "judged": [_short(loss) for loss in self.judged],
            "losses": [_short(loss) for loss in self.losses],
        }


def _short(value: float) -> float | str:
    """Rounded to five digits; text where it is not finite, as JSON has no number for that."""
    if not math.isfinite(value):
        return str(value)
    return float(f"{value:.5g}")
