"""autoawq: AWQ by the first package of it, with the transformers of its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qbench.external.contract import External, Package

PACKAGE = Package(
    "autoawq",
    about="the first package of AWQ, deprecated since 2025; llm-compressor is its successor",
    worker="autoawq_worker.py",
    module="awq",
)


@dataclass(frozen=True)
class AutoAWQ(External):
    """AWQ in the layout `gemm`, which has 4 bits; scales are searched and folded into norms."""

    name: ClassVar[str] = "autoawq"
    paper: ClassVar[str] = "Lin et al., AWQ, MLSys 2024, arXiv:2306.00978; package autoawq"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (4, 4)
    symmetric: ClassVar[bool] = False
    package: ClassVar[Package] = PACKAGE
    calibrates: ClassVar[bool] = True
