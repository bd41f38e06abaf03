"""gptqmodel: GPTQ, GPTAQ and AWQ of the successor of AutoGPTQ and AutoAWQ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qbench.external.contract import External, Package

PACKAGE = Package(
    "gptqmodel",
    about="GPTQ, GPTAQ and AWQ; successor of auto-gptq and autoawq",
    worker="gptqmodel_worker.py",
    module="gptqmodel",
)


@dataclass(frozen=True)
class GPTQ(External):
    """GPTQ by the package's defaults: group-aware reordering, damping 0.05, no clip search.

    mse: the norm of its clip search, 0 for none, which is its default; 2.0 and 2.4 are usual.
    """

    name: ClassVar[str] = "gptqmodel:gptq"
    paper: ClassVar[str] = "Frantar et al., GPTQ, ICLR 2023, arXiv:2210.17323; package gptqmodel"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True
    package: ClassVar[Package] = PACKAGE
    calibrates: ClassVar[bool] = True
    groups: ClassVar[tuple[int | None, ...]] = (16, 32, 64, 128, 256, 512, None)

    mse: float = 0.0


@dataclass(frozen=True)
class GPTAQ(GPTQ):
    """GPTAQ: GPTQ against the outputs that the unquantized layers before would have given."""

    name: ClassVar[str] = "gptqmodel:gptaq"
    paper: ClassVar[str] = "Li et al., GPTAQ, ICML 2025, arXiv:2504.02692; package gptqmodel"


@dataclass(frozen=True)
class AWQ(External):
    """AWQ in the layout `gemm`, which has 4 bits; scales are searched and folded into norms."""

    name: ClassVar[str] = "gptqmodel:awq"
    paper: ClassVar[str] = "Lin et al., AWQ, MLSys 2024, arXiv:2306.00978; package gptqmodel"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (4, 4)
    symmetric: ClassVar[bool] = False
    package: ClassVar[Package] = PACKAGE
    calibrates: ClassVar[bool] = True
    groups: ClassVar[tuple[int | None, ...]] = (16, 32, 64, 128)
