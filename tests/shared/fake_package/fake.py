"""A package that can be told to misbehave, as a plug-in: round-to-nearest without a zero point."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from qbench.external.contract import External, Package

PACKAGE = Package("fake", "for tests", "fake_worker.py", folder=Path(__file__).parent)


@dataclass(frozen=True)
class Fake(External):
    """how: what its worker does, see there."""

    name: ClassVar[str] = "fake"
    paper: ClassVar[str] = "none"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = False
    package: ClassVar[Package] = PACKAGE
    calibrates: ClassVar[bool] = True
    groups: ClassVar[tuple[int | None, ...]] = (16, 32)

    how: str = "codes"
