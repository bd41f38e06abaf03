"""torchao: weights of few bits by the package of the PyTorch project."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from qbench.external.contract import External, Package

PACKAGE = Package(
    "torchao",
    about="rounding to integers by the package of the PyTorch project",
    worker="torchao_worker.py",
    module="torchao.quantization",
)


@dataclass(frozen=True)
class Intx(External):
    """`IntxWeightOnlyConfig`: the nearest level between each group's smallest and largest weight.

    Zero points are integers. Its files have a byte for each code, whatever its bits. Needs no
    calibration.
    """

    name: ClassVar[str] = "torchao"
    paper: ClassVar[str] = "IntxWeightOnlyConfig; package torchao"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True
    package: ClassVar[Package] = PACKAGE


@dataclass(frozen=True)
class Int4(External):
    """int4 in the layout of PyTorch's kernel for CPUs (`PrototypeInt4WeightOnlyConfig`).

    `Int4WeightOnlyConfig`, its twin for accelerators, refuses a CPU in all its layouts. Zero points
    are real numbers. algorithm: `tinygemm`, its default, takes the smallest and the largest weight;
    `hqq` searches zero points by half-quadratic quantization.
    """

    name: ClassVar[str] = "torchao:int4"
    paper: ClassVar[str] = "PrototypeInt4WeightOnlyConfig; package torchao"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (4, 4)
    symmetric: ClassVar[bool] = False
    package: ClassVar[Package] = PACKAGE
    groups: ClassVar[tuple[int | None, ...]] = (32, 64, 128)

    algorithm: Literal["tinygemm", "hqq"] = "tinygemm"
