"""Packages that are known and cannot be run, each with the reason and what to take instead.

Their methods have names, so that `qbench run` skips such a cell with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from qbench.external.contract import External, Package

AQLM = Package(
    "aqlm",
    about="additive quantization",
    unavailable=(
        "its package runs models, and its quantizer is a repository of scripts for GPUs; take "
        "`unisvq`, which is related"
    ),
)
QUIP_SHARP = Package(
    "quip-sharp",
    about="incoherence and lattice codebooks",
    unavailable=(
        "it is a repository of scripts for GPUs without a package; take `unisvq`, which is related"
    ),
)
EXL3 = Package(
    "exl3",
    about="trellis coding of exllamav3",
    unavailable=(
        "its kernels are CUDA alone, and quantizing needs a GPU; take `unisvq`, which is related"
    ),
)


@dataclass(frozen=True)
class AdditiveQuantization(External):
    """Sums of codewords from several codebooks."""

    name: ClassVar[str] = "aqlm"
    paper: ClassVar[str] = "Egiazarian et al., AQLM, ICML 2024, arXiv:2401.06118"
    format: ClassVar[str] = "dense"
    bits: ClassVar[tuple[int, int]] = (1, 8)
    symmetric: ClassVar[bool] = False
    package: ClassVar[Package] = AQLM


@dataclass(frozen=True)
class QuipSharp(External):
    """Codewords of the lattice E8 for rotated weights."""

    name: ClassVar[str] = "quip-sharp"
    paper: ClassVar[str] = "Tseng et al., QuIP#, ICML 2024, arXiv:2402.04396"
    format: ClassVar[str] = "dense"
    bits: ClassVar[tuple[int, int]] = (2, 4)
    symmetric: ClassVar[bool] = False
    package: ClassVar[Package] = QUIP_SHARP


@dataclass(frozen=True)
class Trellis(External):
    """Paths through a trellis for rotated weights."""

    name: ClassVar[str] = "exl3"
    paper: ClassVar[str] = "Tseng et al., QTIP, NeurIPS 2024, arXiv:2406.11235"
    format: ClassVar[str] = "dense"
    bits: ClassVar[tuple[int, int]] = (1, 8)
    symmetric: ClassVar[bool] = False
    package: ClassVar[Package] = EXL3
