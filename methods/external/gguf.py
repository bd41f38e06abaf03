"""gguf: the block types of llama.cpp, quantized by ggml's own functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from qbench.external.contract import External, Package

PACKAGE = Package(
    "gguf",
    about="block types of llama.cpp by ggml's quantizer, without importance matrix",
    worker="gguf_worker.py",
    module="libggml",
)


@dataclass(frozen=True)
class _Gguf(External):
    """All matrices of the blocks in one type of ggml, embeddings and head as they are.

    Where 256 do not divide a row, llama.cpp's substitute of more bits is taken. The mixes of
    `llama-quantize` (Q4_K_M and others) are rules of llama.cpp itself, of which no wheel is known
    that runs with a C library older than glibc 2.38.
    """

    paper: ClassVar[str] = "ggml, ggml_quantize_chunk; package libggml-python"
    format: ClassVar[str] = "dense"
    symmetric: ClassVar[bool] = False
    package: ClassVar[Package] = PACKAGE
    reads: ClassVar[Literal["folder", "gguf"]] = "gguf"


@dataclass(frozen=True)
class Q2K(_Gguf):
    """Q2_K: scales and minima of 4 bits for each 16 weights; for other rows IQ4_NL."""

    name: ClassVar[str] = "gguf:q2_k"
    bits: ClassVar[tuple[int, int]] = (2, 2)
    group: ClassVar[int | None] = 16


@dataclass(frozen=True)
class Q3K(_Gguf):
    """Q3_K: scales of 6 bits for each 16 weights; for other rows IQ4_NL."""

    name: ClassVar[str] = "gguf:q3_k"
    bits: ClassVar[tuple[int, int]] = (3, 3)
    group: ClassVar[int | None] = 16


@dataclass(frozen=True)
class IQ3S(_Gguf):
    """IQ3_S: codewords of four weights from a fixed codebook; for other rows IQ4_NL."""

    name: ClassVar[str] = "gguf:iq3_s"
    bits: ClassVar[tuple[int, int]] = (3, 3)
    group: ClassVar[int | None] = 32


@dataclass(frozen=True)
class Q4K(_Gguf):
    """Q4_K: scales and minima of 6 bits for each 32 weights; for other rows Q5_0."""

    name: ClassVar[str] = "gguf:q4_k"
    bits: ClassVar[tuple[int, int]] = (4, 4)
    group: ClassVar[int | None] = 32


@dataclass(frozen=True)
class IQ4XS(_Gguf):
    """IQ4_XS: levels that are not evenly spaced, scales of 6 bits for each 32; or IQ4_NL."""

    name: ClassVar[str] = "gguf:iq4_xs"
    bits: ClassVar[tuple[int, int]] = (4, 4)
    group: ClassVar[int | None] = 32


@dataclass(frozen=True)
class Q40(_Gguf):
    """Q4_0: a scale in half precision for each 32 weights, and no minimum."""

    name: ClassVar[str] = "gguf:q4_0"
    bits: ClassVar[tuple[int, int]] = (4, 4)
    group: ClassVar[int | None] = 32
