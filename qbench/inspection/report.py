"""Where the bits of a model are, measured from the headers of its files alone.

Of tensors' data only stored shapes are read, so that a folder of any size takes a second. A reader
per kind of file gives the pieces of every tensor: `own.py` (qbench's folders), `gguf_header.py`,
and a module for each of READERS; what is not quantized is read here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qbench.errors import StoreError, unknown_name
from qbench.files.codes import refuse_codes
from qbench.files.model_folder import quantization_settings
from qbench.files.ordinary import is_file, is_folder, ordinary_file, require_ordinary_files
from qbench.files.shards import Shards, read_json
from qbench.inspection.auto_round import read_auto_round
from qbench.inspection.awq import read_awq
from qbench.inspection.bitsandbytes import read_bitsandbytes
from qbench.inspection.compressed_tensors import read_compressed
from qbench.inspection.gptq import read_gptq
from qbench.inspection.hqq import is_hqq, read_hqq
from qbench.inspection.left_layers import routers, with_left_layers
from qbench.inspection.own import read_own
from qbench.inspection.pieces import ITEMS, Piece, Reading, dense_layers, dense_piece
from qbench.inspection.quanto import is_quanto, read_quanto
from qbench.inspection.torchao import read_torchao

Reader = Callable[[Mapping[str, Any], Shards], Reading]

# By the quant_method of the quantization_config, which is what a reader gets, beside the headers.
READERS: dict[str, Reader] = {
    "gptq": read_gptq,
    "auto-round": read_auto_round,
    "awq": read_awq,
    "compressed-tensors": read_compressed,
    "bitsandbytes": read_bitsandbytes,
    "torchao": read_torchao,
}


@dataclass(frozen=True)
class Item:
    """One line of the table.

    name: one of ITEMS. share: of the bytes of all tensors. tensors: in how many it is stored.
    """

    name: str
    nbytes: int
    share: float
    tensors: int


@dataclass(frozen=True)
class Inspection:
    """What a model's files hold; JSON-able.

    source: as in `Reading`. quantized_weights: of the layers that were quantized, counted dense,
    out * in, and of those inside the blocks that were left as they are. bits_per_weight: stored
    bits of their weights over that count, `total` and by item; empty where nothing is quantized.
    stated_bits: of a code, as the config says; code_bits: as measured, over the layers that have
    codes. parameters: of the method, as stated.
    model_parameters: of the whole model. unquantized_layers: linear layers in full precision.
    """

    path: str
    source: str
    format_version: str | None
    method: str | None
    parameters: Mapping[str, Any]
    stated_bits: float | None
    code_bits: float | None
    quantized_layers: int
    quantized_weights: int
    bits_per_weight: dict[str, float]
    nbytes: int
    model_parameters: int
    bits_per_parameter: float
    items: tuple[Item, ...]
    unquantized_layers: tuple[str, ...]
    notes: tuple[str, ...]


def inspect(path: Path) -> Inspection:
    """Inspect a model's folder or a GGUF file.

    StoreError where it is neither, damaged, without a weight, or quantized in a way that no reader
    knows.
    """
    return _summary(path, _read(path))


def stored_layers(path: Path) -> dict[str, tuple[int, int]]:
    """Of every quantized layer, by its name in the files, the bits that it takes and its weights.

    Their sums are those that `inspect` divides. Raises what `inspect` raises.
    """
    layers: dict[str, tuple[int, int]] = {}
    for piece in _read(path).pieces:
        if piece.layer is not None:
            bits, weights = layers.get(piece.layer, (0, 0))
            layers[piece.layer] = bits + 8 * piece.nbytes, weights + piece.parameters
    return layers


def _read(path: Path) -> Reading:
    if os.path.lexists(path) and not is_folder(path):
        ordinary_file(path)
        from qbench.inspection.gguf_header import read_gguf

        return read_gguf(path)
    if not is_file(path / "config.json"):
        raise StoreError(
            f"{path} is no model: give a GGUF file, or a Hugging Face folder with a config.json"
        )
    config = read_json(path / "config.json")
    reading = _read_folder(path, config)
    tied = config.get("tie_word_embeddings")
    if tied is not None and not isinstance(tied, bool):
        raise StoreError(
            f"{path / 'config.json'}: tie_word_embeddings is {tied!r}, which is neither true nor "
            "false; copy it again"
        )
    return _count_tied_head_once(reading) if tied else reading


def _read_folder(folder: Path, config: Mapping[str, Any]) -> Reading:
    require_ordinary_files(folder)
    shards = Shards(folder)
    entry = quantization_settings(folder, config)
    if entry is None and not (is_hqq(shards) or is_quanto(shards)):
        return _read_unquantized(shards)
    if entry is None:
        return _of_others(read_hqq(shards) if is_hqq(shards) else read_quanto(shards), shards)
    quant_method = entry.get("quant_method")
    if quant_method == "qbench":
        return read_own(config, shards)
    if not isinstance(quant_method, str) or quant_method not in READERS:
        known = ["qbench", *READERS]
        raise StoreError(f"{folder}: {unknown_name('quant_method', str(quant_method), known)}")
    return _of_others(READERS[quant_method](entry, shards), shards)


def _of_others(reading: Reading, shards: Shards) -> Reading:
    """The reading of another program's folder, counted as one of ours."""
    shapes = {name: tensor.shape for name, tensor in shards.entries.items()}
    return with_left_layers(reading, routers(reading, shapes))


def _read_unquantized(shards: Shards) -> Reading:
    # Codes without a word on their bits would be counted as dense weights.
    refuse_codes(shards.folder, shards.entries)
    pieces = []
    for name, tensor in shards.entries.items():
        pieces.append(dense_piece(name, tensor.shape, tensor.nbytes))
    return Reading("unquantized", pieces, dense_layers(pieces))


def _count_tied_head_once(reading: Reading) -> Reading:
    """A tied head that is in the file all the same takes its bytes, but adds no parameters."""
    items = {piece.item for piece in reading.pieces}
    if not {"head", "embeddings"} <= items:
        return reading
    pieces = []
    for piece in reading.pieces:
        if piece.item == "head":
            piece = replace(piece, parameters=0)
        pieces.append(piece)
    note = (
        "the head is tied to the embeddings, and stored all the same: "
        "its parameters are counted once"
    )
    return replace(reading, pieces=pieces, notes=[*reading.notes, note])


def _summary(path: Path, reading: Reading) -> Inspection:
    pieces = reading.pieces
    nbytes = sum(piece.nbytes for piece in pieces)
    parameters = sum(piece.parameters for piece in pieces)
    if not parameters:
        raise StoreError(
            f"{path} holds no weight: its tensors, {len(pieces)} of them, have no numbers that are "
            "parameters of a model; fetch it again"
        )
    quantized = [piece for piece in pieces if piece.layer is not None]
    bits_per_weight = _bits_per_weight(quantized)
    notes = list(reading.notes)
    coded = {piece.layer for piece in quantized if piece.item == "codes"}
    codes = _bits_per_weight([piece for piece in quantized if piece.layer in coded]).get("codes")
    stated = reading.stated_bits
    # Both are ratios of whole numbers: a difference beyond rounding is a wrong statement, or codes
    # that do not fill their words.
    if stated is not None and codes is not None and abs(codes - stated) > 1e-6:
        notes.append(
            f"the config states {stated:g}-bit codes, they take {codes:.4g} bits in the file"
        )
    return Inspection(
        path=str(path),
        source=reading.source,
        format_version=reading.format_version,
        method=reading.method,
        parameters=reading.parameters,
        stated_bits=stated,
        code_bits=codes,
        quantized_layers=len({piece.layer for piece in quantized}),
        quantized_weights=sum(piece.parameters for piece in quantized),
        bits_per_weight=bits_per_weight,
        nbytes=nbytes,
        model_parameters=parameters,
        bits_per_parameter=8 * nbytes / parameters,
        items=_table(pieces, nbytes),
        unquantized_layers=tuple(reading.dense),
        notes=tuple(notes),
    )


def _bits_per_weight(pieces: Sequence[Piece]) -> dict[str, float]:
    """Bits over weights, `total` and by item, of the parts of quantized layers; empty without."""
    weights = sum(piece.parameters for piece in pieces)
    if not weights:
        return {}
    nbytes = dict.fromkeys(ITEMS, 0)  # in the order of the table
    for piece in pieces:
        nbytes[piece.item] += piece.nbytes
    result = {"total": 8 * sum(nbytes.values()) / weights}
    for name, size in nbytes.items():
        if size:
            result[name] = 8 * size / weights
    return result


def _table(pieces: Sequence[Piece], total: int) -> tuple[Item, ...]:
    """A line for every item that takes bytes. total: bytes of all tensors."""
    lines = []
    for name in ITEMS:
        of_item = [piece for piece in pieces if piece.item == name and piece.nbytes]
        if of_item:
            nbytes = sum(piece.nbytes for piece in of_item)
            # A GGUF tensor is several pieces, which may be of one item.
            tensors = len({piece.tensor for piece in of_item})
            lines.append(Item(name, nbytes, nbytes / total, tensors))
    return tuple(lines)
