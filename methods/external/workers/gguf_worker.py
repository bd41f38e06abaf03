"""ggml's quantizer over the matrices of a GGUF file in full precision."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import libggml
import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    Keys,
)
from worker_files import Work, run

# What llama.cpp takes where the blocks of a type do not divide the rows (llama-quant.cpp).
SUBSTITUTES = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ3_S": "IQ4_NL", "IQ4_XS": "IQ4_NL"}
SUBSTITUTES |= {"Q4_K": "Q5_0"}


def quantize(work: Work) -> None:
    """Quantize the matrices in the blocks, and write all else as it is."""
    kind = work.settings["method"].rpartition(":")[2].upper()
    ggml = library()
    reader = GGUFReader(work.model)
    quantized: dict[str, tuple[Any, np.ndarray]] = {}
    types: dict[str, int] = {}
    with work.quantizing():
        for tensor in reader.tensors:
            if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
                chosen = type_of(kind, int(tensor.shape[0]))
                quantized[tensor.name] = chosen, blocks(ggml, tensor.data, chosen)
                types[chosen.name] = types.get(chosen.name, 0) + 1
    work.used = {"type": kind, "matrices": types}
    write(reader, quantized, work.output / "checkpoint.gguf")


def library() -> ctypes.CDLL:
    """ggml, with the type of the one function that is called."""
    folder = Path(libggml.__file__).parent / "lib64"
    ggml = ctypes.CDLL(str(folder / "libggml-base.so"))
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    ggml.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, pointer, pointer, number, number, number, pointer,
    ]  # fmt: skip
    return ggml


def type_of(kind: str, columns: int) -> GGMLQuantizationType:
    """The type of a matrix with rows of so many weights."""
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return GGMLQuantizationType[kind if columns % block == 0 else SUBSTITUTES[kind]]


def blocks(ggml: ctypes.CDLL, rows: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """(out, in) float32 -> (out, bytes of a row) uint8."""
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    out, columns = rows.shape
    block, nbytes = GGML_QUANT_SIZES[kind]
    packed = np.empty((out, columns // block * nbytes), dtype=np.uint8)
    written = ggml.ggml_quantize_chunk(
        int(kind), rows.ctypes.data, packed.ctypes.data, 0, out, columns, None
    )
    if written != packed.nbytes:
        raise RuntimeError(f"ggml wrote {written} bytes of {kind.name}, not {packed.nbytes}")
    return packed


def write(reader: GGUFReader, quantized: dict[str, tuple[Any, np.ndarray]], path: Path) -> None:
    """The file with these tensors replaced, and its metadata as they were."""
    architecture = reader.fields[Keys.General.ARCHITECTURE].contents()
    writer = GGUFWriter(path, architecture)
    for field in reader.fields.values():
        if field.name == Keys.General.ARCHITECTURE or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        kind, rows = quantized.get(tensor.name, (tensor.tensor_type, tensor.data))
        writer.add_tensor(tensor.name, rows, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    run(quantize)
