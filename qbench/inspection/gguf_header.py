"""Headers of GGUF files: every tensor's name, type and shape, and what its blocks are made of.

The reader of the gguf package makes an array of every word of the vocabulary, which takes many
seconds; here they are skipped, and every length is held against the length of the file.

All numbers are little-endian. A string is a uint64 length and that many bytes; a value is a uint32
type and its content; an array is a uint32 type, a uint64 length and that many contents:

    magic     b"GGUF"
    version   uint32; 2 and 3 are read
    counts    uint64 tensors, uint64 metadata keys
    metadata  per key: a string and a value
    tensors   per tensor: a string; uint32 axes, and uint64 lengths, inputs first; uint32 type;
              uint64 offset in the data
    data      begins at the next multiple of `general.alignment`, 32 unless stated

Source: ggml, docs/gguf.md; the layouts of blocks: ggml/src/ggml-common.h.
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
# Bytes of a block of each type: codes, scales, and zero points (GGML's minimums). d, m and dmin are
# float16. How many weights a block holds, 32 to 256, the gguf package says (GGML_QUANT_SIZES).
BLOCKS: dict[str, tuple[int, int, int]] = {
    "Q1_0": (16, 2, 0),
    "Q4_0": (16, 2, 0),  # a scale d
    "Q4_1": (16, 2, 2),  # d and the minimum m
    "Q5_0": (20, 2, 0),
    "Q5_1": (20, 2, 2),
    "Q8_0": (32, 2, 0),
    "Q2_K": (64, 8 + 2, 8 + 2),  # 16 scales and 16 minimums of 4 bits, under d and dmin
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
# The types of values in metadata: numbers by their struct codes, strings and arrays.
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
MOST_AXES = 4  # ggml.h, GGML_MAX_DIMS
_STRING = 8
_ARRAY = 9
# Metadata that `qbench inspect` shows, None where it is missing.
_SHOWN = ("general.architecture", "general.file_type", "general.quantization_version")


@dataclass(frozen=True)
class BlockTensor:
    """The header of one tensor.

    type: its name in GGML. shape: inputs first. offset: of its first byte in the file.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int


def read_gguf(path: Path) -> Reading:
    """The pieces of every tensor of a file. StoreError where it is no GGUF file, or damaged."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Header(data)
            tensors = list(header.tensors())
    except (OSError, ValueError, KeyError, struct.error, RecursionError) as error:
        raise StoreError(f"{path} cannot be read as a GGUF file: {error}; copy it again") from None
    pieces: list[Piece] = []
    for tensor in tensors:
        pieces += _pieces(tensor)
    types = Counter(tensor.type for tensor in tensors)
    parameters: dict[str, Any] = {"tensor_types": dict(types)}
    for key in _SHOWN:
        parameters[key.removeprefix("general.")] = header.metadata[key]
    return Reading(
        source="gguf",
        pieces=pieces,
        dense=dense_layers(pieces),
        format_version=str(header.version),
        parameters=parameters,
        notes=_notes(types, header.metadata.get("split.count", 0)),
    )


def _notes(types: Counter[str], split_count: Any) -> list[str]:
    """types: how many tensors have each. split_count: into how many files the model was split."""
    notes = []
    for kind, count in types.items():
        if _is_quantized(kind) and kind not in BLOCKS:
            notes.append(f"tensors of type {kind} ({count}): their scales are among the codes")
    if isinstance(split_count, int) and split_count > 1:
        notes.append(f"this file is one of {split_count} that make up the model")
    return notes


class _Header:
    """Reads a header from front to back; `_at` is the offset of what comes next.

    version: of the format. metadata: the values of keys `general.` and `split.` that are no arrays.
    """

    def __init__(self, data: mmap.mmap) -> None:
        if data[:4] != MAGIC:
            raise ValueError(f"it begins with {data[:4]!r}, not {MAGIC!r}")
        self._data = data
        self._at = len(MAGIC)
        self.version = self._number("I")
        if self.version not in (2, 3):
            raise ValueError(
                f"it has version {self.version}; 2 and 3 in little-endian order are read"
            )
        self._tensor_count = self._number("Q")
        self.metadata = self._read_metadata(self._number("Q"))

    def _read_metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = dict.fromkeys(_SHOWN)
        for _ in range(count):
            key = self._string()
            value = self._value(self._number("I"))
            if key.startswith(("general.", "split.")) and value is not None:
                metadata[key] = value
        number = metadata["general.file_type"]
        for file_type in LlamaFileType:
            if file_type == number:
                metadata["general.file_type"] = file_type.name
                break
        return metadata

    def tensors(self) -> Iterator[BlockTensor]:
        """In the order of the file; to be called once.

        ValueError where a name is there twice, a shape does not fit its type, or the data of a
        tensor end after the file.
        """
        headers = self._tensor_headers()
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        data_start = -(-self._at // alignment) * alignment  # rounded up
        for name, (shape, number, offset) in headers.items():
            kind = GGMLQuantizationType(number)
            block, block_bytes = GGML_QUANT_SIZES[kind]
            nbytes = prod(shape) // block * block_bytes
            start = data_start + offset
            if not shape or shape[0] % block or start + nbytes > len(self._data):
                raise ValueError(
                    f"tensor {name!r} of type {kind.name} and shape {shape} is not in it as a whole"
                )
            yield BlockTensor(name, kind.name, shape, nbytes, start)

    def _tensor_headers(self) -> dict[str, tuple[tuple[int, ...], int, int]]:
        """(shape, type, offset in the data) by name."""
        headers = {}
        for _ in range(self._tensor_count):
            name = self._string()
            if name in headers:
                raise ValueError(f"tensor {name!r} is there twice")
            axes = self._number("I")
            if axes > MOST_AXES:
                raise ValueError(f"tensor {name!r} has {axes} axes, and GGML knows {MOST_AXES}")
            shape = tuple(self._number("Q") for _ in range(axes))
            kind = self._number("I")
            offset = self._number("Q")
            headers[name] = (shape, kind, offset)
        return headers

    def _number(self, code: str) -> Any:
        """The next number. code: its type, one of the struct module's."""
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _string(self) -> str:
        length = self._number("Q")
        start = self._at
        self._skip(length)
        return self._data[start : self._at].decode()

    def _value(self, kind: int) -> Any:
        """A number or a string; an array is skipped, and is None."""
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            self._skip_array()
            return None
        if kind not in _NUMBERS:
            raise ValueError(f"its header has a value of the unknown type {kind}")
        return self._number(_NUMBERS[kind])

    def _skip_array(self) -> None:
        kind = self._number("I")
        length = self._number("Q")
        if kind in _NUMBERS:
            self._skip(length * struct.calcsize(f"<{_NUMBERS[kind]}"))
            return
        for _ in range(length):
            if kind == _STRING:
                self._skip(self._number("Q"))
            else:
                self._value(kind)

    def _skip(self, length: int) -> None:
        self._at += length
        if self._at > len(self._data):
            raise ValueError("it ends before its header does")


def _pieces(tensor: BlockTensor) -> Iterator[Piece]:
    if not _is_quantized(tensor.type):
        yield dense_piece(tensor.name, tensor.shape, tensor.nbytes)
        return
    layer = tensor.name.removesuffix(".weight")
    # of a type whose blocks are not known here, everything counts as codes
    block = BLOCKS.get(tensor.type, (1, 0, 0))
    blocks = tensor.nbytes // sum(block)
    for item, part_bytes in zip(("codes", "scales", "zero_points"), block, strict=True):
        if part_bytes:
            weights = prod(tensor.shape) if item == "codes" else 0
            yield part_piece(tensor.name, layer, item, blocks * part_bytes, weights)


def _is_quantized(kind: str) -> bool:
    """Whether a type stores several weights as one block."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0] > 1
