"""One safetensors file, written tensor by tensor, and hashed on the way.

The format is 8 bytes of the header's length, little-endian, the header in JSON, and the tensors'
bytes one after the other. The library's own writer takes all tensors of a file at once, and reads
back what is to be hashed; this one gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PIECE = 1 << 24  # bytes that are written, and hashed meanwhile, at a time
# Names of dtypes in the file, in the order in which tensors lie there: the largest items first, so
# that every tensor begins at a multiple of its items.
DTYPES = {
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "bfloat16": "BF16",
    "float16": "F16",
    "int16": "I16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a file of these tensors, wherever they are; its SHA-256 in hexadecimal.

    One tensor at a time is copied to the CPU. KeyError where safetensors has no name for a dtype;
    OSError where the disk refuses.
    """
    order = list(DTYPES)
    names = sorted(tensors, key=lambda name: (order.index(_dtype(tensors[name])), name))
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as other:
        for piece in _pieces(tensors, names):
            hashed = other.submit(digest.update, piece)
            written = 0
            while written < len(piece):  # a system call may take less than it is given
                written += file.write(piece[written:])
            hashed.result()
    return digest.hexdigest()


def _pieces(tensors: Mapping[str, Tensor], names: list[str]) -> Iterator[memoryview]:
    """The bytes of the file, in pieces."""
    import torch

    yield memoryview(_header(tensors, names))
    for name in names:
        tensor = tensors[name].detach().cpu().contiguous().reshape(-1)
        view = memoryview(tensor.view(torch.uint8).numpy().data)
        for start in range(0, len(view), PIECE):
            yield view[start : start + PIECE]


def _header(tensors: Mapping[str, Tensor], names: list[str]) -> bytes:
    """Its length, and the header: dtype, shape and place of every tensor."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name in names:
        tensor = tensors[name]
        entries[name] = {
            "dtype": DTYPES[_dtype(tensor)],
            "shape": list(tensor.shape),
            "data_offsets": [place, place + tensor.nbytes],
        }
        place += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
