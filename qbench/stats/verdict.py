"""From differences to words: better, same, worse or undecided, by non-inferiority."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from qbench.stats.difference import Difference
from qbench.stats.sequential import ALPHA

Word = Literal["better", "same", "worse", "undecided"]


@dataclass(frozen=True)
class Judged:
    """A verdict on one difference.

    harm: the difference, positive where the candidate is worse. p_worse: of harm at most the margin
    (adjusted). p_better: of no gain (adjusted). passes: whether harm of the margin or more is ruled
    out, which is so where the word is `better` or `same`.
    """

    word: Word
    harm: Difference
    margin: float
    p_worse: float
    p_better: float

    @property
    def passes(self) -> bool:
        return self.word in ("better", "same")


def judge(
    harms: Sequence[Difference], margins: Sequence[float], share: float = 1.0
) -> list[Judged]:
    """Verdicts on several differences, positive where the candidate is worse.

    share: of ALPHA, what this look at them may spend; the level of the intervals is 1 - ALPHA
    share, and p-values are divided by it, so that those up to ALPHA are claims at every look.

    worse: the lower end of the interval is above the margin. same: the upper end is below it.
    better: the upper end is below 0. Otherwise it is undecided. `worse` and `better` are claims,
    so their p-values (twice the one-sided ones, as the intervals are two-sided) are adjusted by
    Holm over all that are judged together; all others must pass, which needs no adjustment.
    """
    above = [contrast.p_above(m) for contrast, m in zip(harms, margins, strict=True)]
    worse = holm([min(1.0, 2 * p_value / share) for p_value in above])
    better = holm([min(1.0, 2 * contrast.p_below(0.0) / share) for contrast in harms])
    judged = []
    for contrast, margin, p_worse, p_better in zip(harms, margins, worse, better, strict=True):
        word: Word = "undecided"
        if p_worse <= ALPHA:
            word = "worse"
        elif contrast.high < margin:
            word = "better" if p_better <= ALPHA else "same"
        judged.append(Judged(word, contrast, margin, p_worse, p_better))
    return judged


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: those up to 0.05 err, any of them, in 5 % of cases.

    Holm 1979, Scandinavian Journal of Statistics 6, 65.
    """
    count = len(p_values)
    order = sorted(range(count), key=lambda k: p_values[k])
    adjusted = [0.0] * count
    highest = 0.0
    for rank, k in enumerate(order):
        highest = max(highest, min(1.0, (count - rank) * p_values[k]))
        adjusted[k] = highest
    return adjusted
