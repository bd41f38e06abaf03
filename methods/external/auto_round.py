"""auto-round: SignRound, which trains rounding and ranges by the signs of gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qbench.external.contract import External, Package

PACKAGE = Package(
    "auto-round",
    about="SignRound: rounding and ranges trained by the signs of gradients",
    worker="auto_round_worker.py",
    module="auto_round",
)


@dataclass(frozen=True)
class AutoRound(External):
    """SignRound, plain. iters: steps for each block. batch_size: sequences in a step."""

    name: ClassVar[str] = "auto-round"
    paper: ClassVar[str] = (
        "Cheng et al., SignRound, EMNLP Findings 2024, arXiv:2309.05516; package auto-round"
    )
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True
    package: ClassVar[Package] = PACKAGE
    calibrates: ClassVar[bool] = True

    iters: int = 200
    batch_size: int = 8


@dataclass(frozen=True)
class Extended(AutoRound):
    """SignRound with the package's extended algorithm (`enable_alg_ext`)."""

    name: ClassVar[str] = "auto-round:extended"
