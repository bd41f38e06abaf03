"""Looks at a comparison before all of its draws are made, with no more errors than at one look.

The error ALPHA is split over the looks. The intervals and tests of a look hold by themselves at its
share, so by Bonferroni's inequality those of all looks hold together, whatever makes a run stop:
repeated confidence intervals, Jennison and Turnbull 1989, Journal of the Royal Statistical Society
B 51, 305.

The boundaries of O'Brien and Fleming or Pocock, and spending as in Lan and DeMets 1983, Biometrika
70, 659, give a little less away, but go by the correlation of the looks' statistics where the
variance is known. Here it is estimated anew at every look, from two draws at the first, and
their correlation is another one. The price is small: of 5 %, 3.8 are left for the last of three
looks, where O'Brien and Fleming leave 4.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ALPHA = 0.05
# After a share t of the draws, ALPHA t^SPENDING is spent: Kim and DeMets 1987, Biometrika 74, 149.
# Little early, as two draws tell apart only what is equal or very far apart.
SPENDING = 5
TIMES = (0.5, 0.75, 1.0)  # shares of the draws after which there is a look


@dataclass(frozen=True)
class Look:
    """One look. draws: after how many of each method, 0 for all that there are.

    share: of ALPHA, that it may spend. last: whether no look follows; before it, degrees of freedom
    are those of the draws alone.
    """

    draws: int
    share: float = 1.0
    last: bool = True

    @property
    def level(self) -> float:
        """Of its intervals."""
        return 1 - ALPHA * self.share


ONE_LOOK = Look(0)  # at whatever draws there are, and none after it


def looks(draws: int) -> tuple[Look, ...]:
    """The looks at a comparison of so many draws, at two or more of them; their shares add to 1."""
    counts = sorted({max(2, math.ceil(time * draws)) for time in TIMES})
    if draws <= 2:
        return (Look(draws),)
    schedule = []
    spent = 0.0
    for count in counts:
        spending = (count / draws) ** SPENDING
        schedule.append(Look(count, spending - spent, last=count == draws))
        spent = spending
    return tuple(schedule)
