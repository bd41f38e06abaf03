"""GGUF files: what the blocks of every tensor are made of, read from the header alone.

Source: ggml, docs/gguf.md; the layouts of blocks: ggml/src/ggml-common.h.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from gguf.constants import LlamaFileType

from qbench.files.gguf_header import BlockTensor, read_header, stored_in_blocks
from qbench.inspection.left_layers import with_left_layers
from qbench.inspection.pieces import Piece, Reading, dense_layers, dense_piece, part_piece

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
_ROUTER = ".ffn_gate_inp"  # and of a shared expert `.ffn_gate_inp_shexp`
# Metadata that `qbench inspect` shows, None where it is missing.
_SHOWN = ("general.architecture", "general.file_type", "general.quantization_version")


def read_gguf(path: Path) -> Reading:
    """The pieces of every tensor of a file. StoreError where it is no GGUF file, or damaged."""
    header = read_header(path)
    pieces: list[Piece] = []
    for tensor in header.tensors:
        pieces += _pieces(tensor)
    types = Counter(tensor.type for tensor in header.tensors)
    parameters: dict[str, Any] = {"tensor_types": dict(types)}
    for key in _SHOWN:
        parameters[key.removeprefix("general.")] = header.metadata.get(key)
    for file_type in LlamaFileType:
        if file_type == parameters["file_type"]:
            parameters["file_type"] = file_type.name
            break
    dense = dense_layers(pieces)
    reading = Reading(
        source="gguf",
        pieces=pieces,
        dense=dense,
        format_version=str(header.version),
        parameters=parameters,
        notes=_notes(types, header.metadata.get("split.count", 0)),
    )
    return with_left_layers(reading, [name for name in dense if _ROUTER in name])


def _notes(types: Counter[str], split_count: Any) -> list[str]:
    """types: how many tensors have each. split_count: into how many files the model was split."""
    notes = []
    for kind, count in types.items():
        if stored_in_blocks(kind) and kind not in BLOCKS:
            notes.append(f"tensors of type {kind} ({count}): their scales are among the codes")
    if isinstance(split_count, int) and split_count > 1:
        notes.append(f"this file is one of {split_count} that make up the model")
    return notes


def _pieces(tensor: BlockTensor) -> Iterator[Piece]:
    if not tensor.in_blocks:
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
