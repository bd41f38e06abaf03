"""gguf: llama.cpp's quantizer, as a wheel brings its library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from qbench.external.contract import External, Package

PACKAGE = Package(
    "gguf",
    about="the quantizer of llama.cpp; types that need an importance matrix are not offered",
    worker="gguf_worker.py",
    module="llama_cpp_py_sync",
)


@dataclass(frozen=True)
class _Gguf(External):
    """A file type of llama.cpp, mixed as `llama-quantize` mixes it, without importance matrix.

    Rows that blocks of 256 do not divide get another type, of more bits, and embeddings are
    quantized, too: bits per weight are those that the file has.
    """

    paper: ClassVar[str] = "llama.cpp, llama_model_quantize; package llama-cpp-py-sync"
    format: ClassVar[str] = "dense"
    symmetric: ClassVar[bool] = False
    package: ClassVar[Package] = PACKAGE
    reads: ClassVar[Literal["folder", "gguf"]] = "gguf"


@dataclass(frozen=True)
class Q2K(_Gguf):
    """Q2_K: 2 bits, scales of 4 bits for each 16 weights, and some matrices in Q3_K or more."""

    name: ClassVar[str] = "gguf:q2_k"
    bits: ClassVar[tuple[int, int]] = (2, 2)
    group: ClassVar[int | None] = 16


@dataclass(frozen=True)
class Q3KM(_Gguf):
    """Q3_K_M: 3 bits, scales of 6 bits for each 16 weights, and some matrices in Q4_K or more."""

    name: ClassVar[str] = "gguf:q3_k_m"
    bits: ClassVar[tuple[int, int]] = (3, 3)
    group: ClassVar[int | None] = 16


@dataclass(frozen=True)
class IQ3M(_Gguf):
    """IQ3_M: 3-bit codewords of a fixed codebook, scales for each 32 weights, some in Q4_K."""

    name: ClassVar[str] = "gguf:iq3_m"
    bits: ClassVar[tuple[int, int]] = (3, 3)
    group: ClassVar[int | None] = 32


@dataclass(frozen=True)
class Q4KM(_Gguf):
    """Q4_K_M: 4 bits, scales and minima of 6 bits for each 32 weights, some matrices in Q6_K."""

    name: ClassVar[str] = "gguf:q4_k_m"
    bits: ClassVar[tuple[int, int]] = (4, 4)
    group: ClassVar[int | None] = 32


@dataclass(frozen=True)
class IQ4XS(_Gguf):
    """IQ4_XS: 16 levels that are not evenly spaced, scales of 6 bits for each 32 weights."""

    name: ClassVar[str] = "gguf:iq4_xs"
    bits: ClassVar[tuple[int, int]] = (4, 4)
    group: ClassVar[int | None] = 32
