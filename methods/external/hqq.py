"""hqq: half-quadratic quantization by its authors' package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qbench.external.contract import External, Package

PACKAGE = Package(
    "hqq", about="half-quadratic quantization", worker="hqq_worker.py", module="hqq.core.quantize"
)


@dataclass(frozen=True)
class HQQ(External):
    """Half-quadratic quantization: zero points that minimize a robust error of the weights.

    The package's defaults: groups along the inputs (axis 1), its solver, scales and zero points in
    float16, the latter rounded to integers at 4 bits. Needs no calibration.
    """

    name: ClassVar[str] = "hqq"
    paper: ClassVar[str] = (
        "Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023; "
        "package hqq"
    )
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 4)
    symmetric: ClassVar[bool] = False
    package: ClassVar[Package] = PACKAGE
    groups: ClassVar[tuple[int | None, ...]] = (8, 16, 32, 64, 128, 256)
