"""auto-gptq: GPTQ by the first package of it, with the transformers of its time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qbench.external.contract import External, Package

PACKAGE = Package(
    "auto-gptq",
    about="the first package of GPTQ, not maintained since 2024; gptqmodel is its successor",
    worker="auto_gptq_worker.py",
    module="auto_gptq",
    python=((3, 11), (3, 11)),
)


@dataclass(frozen=True)
class AutoGPTQ(External):
    """GPTQ by the package's defaults: act-order, damping 0.01, no clip search.

    desc_act: whether columns are taken in the order of their Hessian's diagonal, which scatters the
    groups over the inputs.
    """

    name: ClassVar[str] = "auto-gptq"
    paper: ClassVar[str] = "Frantar et al., GPTQ, ICLR 2023, arXiv:2210.17323; package auto-gptq"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    widths: ClassVar[tuple[int, ...] | None] = (2, 3, 4, 8)
    symmetric: ClassVar[bool] = True
    package: ClassVar[Package] = PACKAGE
    calibrates: ClassVar[bool] = True

    desc_act: bool = True
