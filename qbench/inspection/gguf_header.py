"""Headers of GGUF files: every tensor's name, type and shape, and what a block of its type is made of.

The reader of the gguf package makes an array of every word of the vocabulary, which takes many
seconds; here they are skipped, and lengths are held against the file's.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from qbench.errors import StoreError
from qbench.inspection.pieces import Piece, Reading, dense_layers, dense_piece, part_piece

MAGIC = b"GGUF"
BLOCKS: dict[
    str, tuple[int, int, int]
] = {  # bytes of a block: codes, scales, and zero points (GGML's mins)
    "Q1_0": (16, 2, 0),
    "Q4_0": (16, 2, 0),  # a scale d in float16 per 32 codes
    "Q4_1": (16, 2, 2),  # d and the minimum m
    "Q5_0": (20, 2, 0),
    "Q5_1": (20, 2, 2),
    "Q8_0": (32, 2, 0),
    "Q2_K": (64, 8 + 2, 8 + 2),  # 16 scales and 16 minimums of 4 bits, under d and dmin in float16
    "Q3_K": (96, 12 + 2, 0),  # 16 scales of 6 bits, d
    "Q4_K": (128, 6 + 2, 6 + 2),  # 8 scales and 8 minimums of 6 bits, d and dmin
    "Q5_K": (160, 6 + 2, 6 + 2),
    "Q6_K": (192, 16 + 2, 0),  # 16 scales of 8 bits, d
    "IQ4_NL": (16, 2, 0),
    "IQ4_XS": (128, 6 + 2, 0),  # 8 scales of 6 bits, d
    "TQ1_0": (52, 2, 0),
    "TQ2_0": (64, 2, 0),
    "MXFP4": (16, 1, 0),  # a scale of 8 bits, a power of two
    "NVFP4": (32, 4, 0),  # 4 scales of 8 bits
}
_NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class BlockTensor:
    """One tensor. shape: inputs first. offset: of its data in the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int


def read_gguf(path: Path) -> Reading:
    """Every tensor of the file. StoreError where it is no GGUF file, damaged or cut off."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Header(data)
            tensors = list(header.tensors())
    except (OSError, ValueError, KeyError, struct.error, RecursionError) as error:
        raise StoreError(f"{path} cannot be read as a GGUF file: {error}; copy it again") from None
    pieces = [piece for tensor in tensors for piece in _pieces(tensor)]
    types = Counter(tensor.type for tensor in tensors)
    notes = [
        f"tensors of type {kind} ({count}): their scales are among the codes"
        for kind, count in types.items()
        if _is_quantized(kind) and kind not in BLOCKS
    ]
    parts = header.metadata.get("split.count", 0)
    if isinstance(parts, int) and parts > 1:
        notes.append(f"this file is one of {parts} that make up the model")
    stated = {"tensor_types": dict(types)} | {
        key.removeprefix("general."): header.metadata[key] for key in _STATED
    }
    return Reading(
        "gguf", pieces, dense_layers(pieces), str(header.version), None, stated, None, notes
    )


_STATED = ("general.architecture", "general.file_type", "general.quantization_version")


class _Header:
    """version, metadata (those of the keys `general.` and `split.` that are no arrays), and the tensors."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, 4
        if data[:4] != MAGIC:
            raise ValueError(f"it begins with {data[:4]!r}, not {MAGIC!r}")
        self.version = self._number("I")
        if self.version not in (2, 3):
            raise ValueError(
                f"it has version {self.version}; 2 and 3 in little-endian order are read"
            )
        self._count, keys = self._number("Q"), self._number("Q")
        self.metadata = dict[str, Any].fromkeys(_STATED)
        for _ in range(keys):
            key, value = self._string(), self._value(self._number("I"))
            if key.startswith(("general.", "split.")) and value is not None:
                self.metadata[key] = value
        kind = self.metadata["general.file_type"]
        self.metadata["general.file_type"] = next(
            (t.name for t in LlamaFileType if t == kind), kind
        )

    def tensors(self) -> Iterator[BlockTensor]:
        """In the order of the file. ValueError where one is not as its type says, or ends after the file."""
        found = dict[str, tuple[tuple[int, ...], int, int]]()
        for _ in range(self._count):
            name = self._string()
            if name in found:
                raise ValueError(f"tensor {name!r} is there twice")
            shape = tuple(self._number("Q") for _ in range(self._number("I")))
            found[name] = shape, self._number("I"), self._number("Q")
        step = self.metadata.get("general.alignment", 32)
        if not isinstance(step, int) or step < 1:
            raise ValueError(f"general.alignment is {step!r}")
        start = -(-self._at // step) * step
        for name, (shape, number, offset) in found.items():
            kind = GGMLQuantizationType(number)
            block, size = GGML_QUANT_SIZES[kind]
            nbytes = prod(shape) // block * size
            if not shape or shape[0] % block or start + offset + nbytes > len(self._data):
                raise ValueError(
                    f"tensor {name!r} of type {kind.name} and shape {shape} is not in it as a whole"
                )
            yield BlockTensor(name, kind.name, shape, nbytes, start + offset)

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _skip(self, length: int) -> int:
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise ValueError("it ends before its header does")
        return start

    def _string(self) -> str:
        start = self._skip(self._number("Q"))
        return self._data[start : self._at].decode()

    def _value(self, kind: int) -> Any:
        """A number or a string; an array is skipped, and is None."""
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            if kind not in _NUMBERS:
                raise ValueError(f"its header has a value of the unknown type {kind}")
            return self._number(_NUMBERS[kind])
        inner, length = self._number("I"), self._number("Q")
        if inner in _NUMBERS:
            self._skip(length * struct.calcsize(f"<{_NUMBERS[inner]}"))
            return None
        for _ in range(length):
            if inner == _STRING:
                self._skip(self._number("Q"))
            else:
                self._value(inner)
        return None


def _pieces(tensor: BlockTensor) -> Iterator[Piece]:
    if not _is_quantized(tensor.type):
        yield dense_piece(tensor.name, tensor.shape, tensor.nbytes)
        return
    layer, weights = tensor.name.removesuffix(".weight"), prod(tensor.shape)
    parts = BLOCKS.get(tensor.type, (1, 0, 0))
    for item, part in zip(("codes", "scales", "zero_points"), parts, strict=True):
        if part:
            nbytes = tensor.nbytes // sum(parts) * part
            yield part_piece(tensor.name, layer, item, nbytes, weights if item == "codes" else 0)


def _is_quantized(kind: str) -> bool:
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0] > 1
