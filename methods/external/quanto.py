"""optimum-quanto: integers of 2 and 4 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from qbench.external.contract import External, Package

PACKAGE = Package(
    "quanto",
    about="rounding to integers by optimum-quanto",
    worker="quanto_worker.py",
    module="optimum.quanto",
)


@dataclass(frozen=True)
class Quanto(External):
    """qint2 and qint4: the nearest level in each group, whose zero points are real numbers.

    Its user cannot choose the groups: they have 128 inputs, or as many of 96, 64 and 32 as divide
    a row. optimizer: `max`, its default, takes the smallest and the largest weight of a group;
    `hqq` searches the zero points by half-quadratic quantization. Needs no calibration.
    """

    name: ClassVar[str] = "quanto"
    paper: ClassVar[str] = "qint2 and qint4; package optimum-quanto"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 4)
    widths: ClassVar[tuple[int, ...] | None] = (2, 4)
    symmetric: ClassVar[bool] = False
    package: ClassVar[Package] = PACKAGE
    group: ClassVar[int | None] = 128
    fits_any_row: ClassVar[bool] = True

    optimizer: Literal["max", "hqq"] = "max"
