"""FlexBCQ: the forerunner of UniQuanF, by the same authors (ICLR 2025 submission 8982).

The same composition of FlexRound and binary coding, with gradient filtering and a full mapping
every p steps, and with a `unified` initialization that searches 50 clip ratios at 15 rounds of
alternating each; no shift beyond the grid's, and none that is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qbench.methods.level_mapping import Filter
from qbench.methods.mapped_weight import Mapping
from qbench.methods.uniquanf import UniQuanF


@dataclass(frozen=True)
class FlexBCQ(UniQuanF):
    """UniQuanF with FlexBCQ's filter and, where it is asked for, its `unified` initialization.

    The paper's mapping is the full one, by the distance to every level, as with `faithful`;
    `exact`, the default here, gives the same codes faster.
    """

    name: ClassVar[str] = "flexbcq"
    paper: ClassVar[str] = "FlexBCQ, ICLR 2025 submission 8982 (OpenReview)"
    published_mapping: ClassVar[Mapping] = "full"

    grid: int = 50
    shift: bool = False
    learn_shift: bool = False
    gradient_filtering: Filter = "distance"
