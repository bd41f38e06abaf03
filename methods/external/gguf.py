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
NO_MIXES = (
    "the mixes of llama-quantize are rules of llama.cpp itself, of which the only wheel that was "
    "seen asks for glibc 2.38"
)


@dataclass(frozen=True)
class _Gguf(External):
    """All matrices of the blocks in one type of ggml, embeddings and head as they are.

    The model is written as GGUF first, as `qbench export` does: Llama, Mistral, Qwen2 or Qwen3.
    Where 256 do not divide a row, llama.cpp's substitute of more bits is taken.
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


@dataclass(frozen=True)
class Q3KM(Q3K):
    """Q3_K_M: Q3_K, and other types for some layers."""

    name: ClassVar[str] = "gguf:q3_k_m"
    unavailable: ClassVar[str | None] = f"{NO_MIXES}; take gguf:q3_k"


@dataclass(frozen=True)
class Q4KM(Q4K):
    """Q4_K_M: Q4_K, and Q6_K for some layers."""

    name: ClassVar[str] = "gguf:q4_k_m"
    unavailable: ClassVar[str | None] = f"{NO_MIXES}; take gguf:q4_k"


@dataclass(frozen=True)
class IQ2XS(Q2K):
    """IQ2_XS: codewords of eight weights from a fixed codebook."""

    name: ClassVar[str] = "gguf:iq2_xs"
    unavailable: ClassVar[str | None] = (
        "ggml quantizes to it by an importance matrix, which is not made here; take gguf:q2_k"
    )
