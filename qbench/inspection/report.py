"""Where the bits of a model are, measured from the headers of its files: ours, of other programs, GGUF, unquantized.

No tensor's data are read, so a folder of any size takes a second. `qbench.foreign` has the rules
for the folders of other programs, `qbench.inspection.gguf_header` those for GGUF files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qbench.checkpoint.config import compare, read_layout
from qbench.errors import StoreError, unknown_name
from qbench.files.shards import Shards, read_json
from qbench.inspection.foreign_headers import CODES, read_awq, read_compressed, read_gptq
from qbench.inspection.pieces import ITEMS, Piece, Reading, Source, dense_layers, dense_piece


@dataclass(frozen=True)
class Item:
    """One line of the table. share: of the bytes of all tensors. tensors: in which it is stored."""

    name: str
    nbytes: int
    share: float
    tensors: int


@dataclass(frozen=True)
class Inspection:
    """What a model's files hold; JSON-able.

    quantized_weights: of the layers that were quantized, counted dense, out * in; a layer that our
    method left dense is one of them. bits_per_weight: stored bits of their weights over that count:
    `total`, and by item; empty where nothing is quantized. stated_bits: of a code, as the config
    says. parameters: of the method, as stated. model_parameters: of the whole model.
    unquantized_layers: linear layers in full precision.
    """

    path: str
    source: Source
    format_version: str | None
    method: str | None
    parameters: Mapping[str, Any]
    stated_bits: float | None
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
    """Of a model's folder or a GGUF file. StoreError where it is neither, damaged, or quantized in an unknown way."""
    if path.is_file():
        from qbench.inspection.gguf_header import read_gguf

        return _summary(path, read_gguf(path))
    if not (path / "config.json").is_file():
        raise StoreError(
            f"{path} is no model: give a GGUF file, or a Hugging Face folder with a config.json"
        )
    return _summary(path, _read_folder(path))


def _read_folder(folder: Path) -> Reading:
    config = read_json(folder / "config.json")
    shards = Shards(folder)
    entry = config.get("quantization_config", config.get("compression_config"))
    if entry is None:
        return _untied(config, _read_unquantized(shards))
    kind = entry.get("quant_method") if isinstance(entry, Mapping) else None
    if kind == "qbench":
        return _untied(config, _read_ours(config, shards))
    if not isinstance(kind, str) or kind not in _FOREIGN:
        raise StoreError(
            f"{folder}: {unknown_name('quant_method', str(kind), ['qbench', *_FOREIGN])}"
        )
    return _untied(config, _FOREIGN[kind](entry, shards))


_FOREIGN: dict[str, Callable[[Mapping[str, Any], Shards], Reading]] = {
    "gptq": read_gptq,
    "awq": read_awq,
    "compressed-tensors": read_compressed,
}
_PARTS = {  # of our formats
    "codes": "codes",
    "planes": "codes",
    "scale": "scales",
    "alpha": "scales",
    "zero_point": "zero_points",
    "shift": "shifts",
    "map": "codebooks",
    "offset": "codebooks",
    "su": "sign_vectors",
    "sv": "sign_vectors",
    "weight": "dense_weights",  # of the format `dense`; in all others it is the empty sentinel
}


def _read_ours(config: Mapping[str, Any], shards: Shards) -> Reading:
    layout = read_layout(config, shards.folder / "config.json")
    pieces, of_layers, dense = list[Piece](), set[str](), list[str]()
    for layer, group in compare(layout, shards).items():
        out, columns = group.weight().shape
        parameters = out * columns
        for part in group.parts:
            name = f"{layer}.{part}"
            of_layers.add(name)
            pieces.append(
                Piece(
                    name, _PARTS.get(part, "other"), shards.entries[name].nbytes, parameters, layer
                )
            )
            parameters = 0  # counted once
        if group.format == "dense":
            dense.append(layer)
    rest = [
        dense_piece(name, entry.shape, entry.nbytes)
        for name, entry in shards.entries.items()
        if name not in of_layers
    ]
    facts = layout.facts()
    method, scheme = facts.get("method"), facts.get("scheme")
    stated = scheme.get("bits") if isinstance(scheme, Mapping) else None
    return Reading(
        "qbench",
        pieces + rest,
        dense + dense_layers(rest),
        str(layout.version),
        None if method is None else str(method),
        facts,
        float(stated) if isinstance(stated, int) else None,
    )


def _read_unquantized(shards: Shards) -> Reading:
    odd = [name for name in shards.entries if name.endswith(tuple(f".{leaf}" for leaf in CODES))]
    if odd:
        raise StoreError(
            f"{shards.folder} holds {odd[0]}, but its config.json has no quantization_config; "
            "put what the program that quantized it has written there"
        )
    pieces = [
        dense_piece(name, entry.shape, entry.nbytes) for name, entry in shards.entries.items()
    ]
    return Reading("unquantized", pieces, dense_layers(pieces))


def _untied(config: Mapping[str, Any], reading: Reading) -> Reading:
    """A head that is tied to the embeddings, and yet in the file, takes its bytes, but adds no parameters."""
    found = {piece.item for piece in reading.pieces}
    if config.get("tie_word_embeddings") is not True or not {"head", "embeddings"} <= found:
        return reading
    pieces = [
        Piece(piece.tensor, piece.item, piece.nbytes) if piece.item == "head" else piece
        for piece in reading.pieces
    ]
    note = "the head is tied to the embeddings, and stored all the same: its parameters are counted once"
    return replace(reading, pieces=pieces, notes=[*reading.notes, note])


def _summary(path: Path, reading: Reading) -> Inspection:
    pieces = reading.pieces
    total, parameters = sum(p.nbytes for p in pieces), sum(p.parameters for p in pieces)
    of_weights = [p for p in pieces if p.layer is not None]
    weights = sum(p.parameters for p in of_weights)
    bits = {name: 8 * sum(p.nbytes for p in of_weights if p.item == name) for name in ITEMS}
    per_weight = {name: value / weights for name, value in bits.items() if value} if weights else {}
    notes, codes = list(reading.notes), per_weight.get("codes")
    if (
        reading.stated_bits is not None
        and codes is not None
        and abs(codes - reading.stated_bits) > 1e-6
    ):
        notes.append(
            f"the config states {reading.stated_bits:g}-bit codes, they take {codes:.4g} bits in the file"
        )
    return Inspection(
        str(path),
        reading.source,
        reading.format_version,
        reading.method,
        reading.parameters,
        reading.stated_bits,
        len({p.layer for p in of_weights}),
        weights,
        {"total": sum(bits.values()) / weights} | per_weight if weights else {},
        total,
        parameters,
        8 * total / parameters if parameters else 0.0,
        _table(pieces, total),
        tuple(reading.dense),
        tuple(notes),
    )


def _table(pieces: Sequence[Piece], total: int) -> tuple[Item, ...]:
    found = []
    for name in ITEMS:
        own = [piece for piece in pieces if piece.item == name and piece.nbytes]
        if own:
            size = sum(piece.nbytes for piece in own)
            found.append(Item(name, size, size / total, len({piece.tensor for piece in own})))
    return tuple(found)
