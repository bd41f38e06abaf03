"""llm-compressor: GPTQ and AWQ of the vLLM project."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qbench.external.contract import External, Package

PACKAGE = Package(
    "llm-compressor",
    about="GPTQ and AWQ of the vLLM project, in the layout of compressed-tensors",
    worker="llm_compressor_worker.py",
    module="llmcompressor",
)


@dataclass(frozen=True)
class GPTQ(External):
    """GPTQ by the package's defaults: static act-order (`actorder`), damping 0.01."""

    name: ClassVar[str] = "llm-compressor:gptq"
    paper: ClassVar[str] = (
        "Frantar et al., GPTQ, ICLR 2023, arXiv:2210.17323; package llmcompressor"
    )
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True
    package: ClassVar[Package] = PACKAGE
    calibrates: ClassVar[bool] = True


@dataclass(frozen=True)
class AWQ(External):
    """AWQ by the package's defaults; scales are searched and folded into norms."""

    name: ClassVar[str] = "llm-compressor:awq"
    paper: ClassVar[str] = "Lin et al., AWQ, MLSys 2024, arXiv:2306.00978; package llmcompressor"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True
    package: ClassVar[Package] = PACKAGE
    calibrates: ClassVar[bool] = True
