"""Headers of GGUF files: metadata, and every tensor's name, type, shape and place.

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
    data      begins at the next multiple of `general.alignment`, 32 unless stated; a tensor begins
              at the next one after the tensor before it, and nowhere else

Source: ggml, docs/gguf.md, and of the places, src/gguf.cpp, `gguf_init_from_reader`.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from qbench.errors import StoreError

MAGIC = b"GGUF"
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

    @property
    def in_blocks(self) -> bool:
        """Whether its type stores several weights as one block."""
        return stored_in_blocks(self.type)


@dataclass(frozen=True)
class Header:
    """What precedes the data of a file.

    metadata: values by key; an array is only its length, in `arrays`. longest: characters of the
    longest string. nbytes: of the header.
    """

    version: int
    metadata: dict[str, Any]
    arrays: dict[str, int]
    tensors: tuple[BlockTensor, ...]
    longest: int
    nbytes: int


def read_header(path: Path) -> Header:
    """The header of a file. StoreError where it is no GGUF file, or damaged."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            reader = _Reader(data)
            tensors = tuple(reader.tensors())
    except (OSError, ValueError, KeyError, struct.error, RecursionError) as error:
        raise StoreError(f"{path} cannot be read as a GGUF file: {error}; copy it again") from None
    return Header(
        reader.version, reader.metadata, reader.arrays, tensors, reader.longest, reader.at
    )


def stored_in_blocks(kind: str) -> bool:
    """Whether a type of GGML, by its name, stores several weights as one block."""
    return GGML_QUANT_SIZES[GGMLQuantizationType[kind]][0] > 1


class _Reader:
    """Reads a header from front to back; `at` is the offset of what comes next.

    The rest is as in `Header`.
    """

    def __init__(self, data: mmap.mmap) -> None:
        if data[:4] != MAGIC:
            raise ValueError(f"it begins with {data[:4]!r}, not {MAGIC!r}")
        self._data = data
        self.at = len(MAGIC)
        self.longest = 0
        self.version = self._number("I")
        if self.version not in (2, 3):
            raise ValueError(
                f"it has version {self.version}; qbench reads 2 and 3 in little-endian order"
            )
        self._tensor_count = self._number("Q")
        self.metadata: dict[str, Any] = {}
        self.arrays: dict[str, int] = {}
        for _ in range(self._number("Q")):
            self._read_key()

    def _read_key(self) -> None:
        key = self._string()
        kind = self._number("I")
        if kind == _ARRAY:
            self.arrays[key] = self._skip_array()
        else:
            self.metadata[key] = self._value(kind)

    def tensors(self) -> Iterator[BlockTensor]:
        """In the order of the file; to be called once.

        ValueError where a name is there twice, a shape does not fit its type, or the data of a
        tensor end after the file or do not begin where those of the tensor before it end.
        """
        headers = self._tensor_headers()
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment!r}, and must be a power of two")
        data_start = -(-self.at // alignment) * alignment  # rounded up
        expected = 0
        for name, (shape, number, offset) in headers.items():
            kind = GGMLQuantizationType(number)
            block, block_bytes = GGML_QUANT_SIZES[kind]
            nbytes = prod(shape) // block * block_bytes
            start = data_start + offset
            if not shape or shape[0] % block or start + nbytes > len(self._data):
                raise ValueError(
                    f"tensor {name!r} of type {kind.name} and shape {shape} is not in it as a whole"
                )
            if offset != expected:
                raise ValueError(
                    f"the data of tensor {name!r} begin at {offset}, and those before it end at "
                    f"{expected}, rounded up to {alignment}"
                )
            expected += -(-nbytes // alignment) * alignment
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
        (value,) = struct.unpack_from(f"<{code}", self._data, self.at)
        self.at += struct.calcsize(f"<{code}")
        return value

    def _string(self) -> str:
        start = self.at + 8
        self._skip_string()
        return self._data[start : self.at].decode()

    def _skip_string(self) -> None:
        length = self._number("Q")
        self.longest = max(self.longest, length)
        self._skip(length)

    def _value(self, kind: int) -> Any:
        """A number or a string."""
        if kind == _STRING:
            return self._string()
        if kind not in _NUMBERS:
            raise ValueError(f"its header has a value of the unknown type {kind}")
        return self._number(_NUMBERS[kind])

    def _skip_array(self) -> int:
        """How many contents it has, those of arrays in it included."""
        kind = self._number("I")
        length: int = self._number("Q")
        if kind in _NUMBERS:
            self._skip(length * struct.calcsize(f"<{_NUMBERS[kind]}"))
            return length
        inner = 0
        for _ in range(length):
            if kind == _STRING:
                self._skip_string()
            elif kind == _ARRAY:
                inner += self._skip_array()
            else:
                self._value(kind)
        return length + inner

    def _skip(self, length: int) -> None:
        self.at += length
        if self.at > len(self._data):
            raise ValueError("it ends before its header does")
