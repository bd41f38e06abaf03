"""FlexBCQ: the forerunner of UniQuanF, by the same authors (ICLR 2025 submission 8982).

The same composition of FlexRound and binary coding, with gradient filtering and a full mapping
every p steps, and with an initialization that searches 50 clip ratios at 15 rounds of alternating
each; no shift beyond the grid's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qbench.methods.uniquanf import UniQuanF


@dataclass(frozen=True)
class FlexBCQ(UniQuanF):
    """UniQuanF with FlexBCQ's initialization.

    The paper's mapping is the full one, by the distance to every level; `exact`, the default here,
    gives the same codes faster.
    """

    name: ClassVar[str] = "flexbcq"
    paper: ClassVar[str] = "FlexBCQ, ICLR 2025 submission 8982 (OpenReview)"

    grid: int = 50
    shift: bool = False
