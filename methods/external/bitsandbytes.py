"""bitsandbytes: NF4 and FP4, the 4-bit number formats of QLoRA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qbench.external.contract import External, Package

PACKAGE = Package(
    "bitsandbytes",
    about="4-bit number formats without calibration",
    worker="bitsandbytes_worker.py",
    module="bitsandbytes",
)


@dataclass(frozen=True)
class NF4(External):
    """NF4: 16 levels that are quantiles of a normal distribution, times a block's largest weight.

    double_quantization: whether the blocks' maxima are quantized to 8 bits in turn, as QLoRA does
    and its users are advised to.
    """

    name: ClassVar[str] = "bitsandbytes:nf4"
    paper: ClassVar[str] = (
        "Dettmers et al., QLoRA, NeurIPS 2023, arXiv:2305.14314; package bitsandbytes"
    )
    format: ClassVar[str] = "dense"
    bits: ClassVar[tuple[int, int]] = (4, 4)
    symmetric: ClassVar[bool] = False
    package: ClassVar[Package] = PACKAGE
    groups: ClassVar[tuple[int | None, ...]] = (64,)  # transformers passes no other block size on

    double_quantization: bool = True


@dataclass(frozen=True)
class FP4(NF4):
    """FP4: 16 levels of a 4-bit floating-point number, times a block's largest weight."""

    name: ClassVar[str] = "bitsandbytes:fp4"
