"""Folders that other programs quantized: which tensor is what, and how many weights stand behind the codes.

Told by the names and shapes alone, for a layer `L` with a weight of shape (out, in):

    gptq                L.qweight (in*b/32, out) codes, L.scales (groups, out), L.qzeros zero points, L.g_idx (in,) the
                        group of each input. in is the length of g_idx, else what the stated b makes of the rows.
    awq                 L.qweight (in, out*b/32), L.scales (groups, out), L.qzeros. out is that of the scales; in the
                        layouts gemv and gemv_fast, weights are counted by the stated b.
    compressed-tensors  L.weight_packed (out, words of 32 bits), or plain L.weight; L.weight_scale, L.weight_zero_point,
                        L.weight_g_idx, L.weight_shape. in is the length of weight_g_idx, else groups * group_size, else
                        what fits the words at b bits: then padding at the end of a row counts as weights.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qbench.errors import StoreError
from qbench.files.shards import Entry, Shards
from qbench.inspection.pieces import Piece, Reading, Source, dense_layers, dense_piece, part_piece

Count = Callable[[str], int]
_INTEGER = {
    "qweight": "codes",
    "qzeros": "zero_points",
    "scales": "scales",
    "g_idx": "permutations",
}
_COMPRESSED = {
    "weight_packed": "codes",
    "weight": "codes",
    "weight_scale": "scales",
    "weight_zero_point": "zero_points",
    "weight_g_idx": "permutations",
    "weight_shape": "other",
}
_ACTIVATIONS = {
    "input_scale",
    "input_zero_point",
    "output_scale",
    "output_zero_point",
    "k_scale",
    "v_scale",
}
_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mixed-precision",
)
_LISTS = ("ignore", "modules_to_not_convert", "quant_method", "version", "bits")
_AGAIN = "copy the folder again, or inspect one that is whole"
CODES = ("qweight", "weight_packed")


def read_gptq(entry: Mapping[str, Any], shards: Shards) -> Reading:
    """entry: the quantization_config. StoreError where the tensors are not those of a GPTQ folder."""
    bits = _whole(entry, "bits", shards, range(1, 9))

    def count(layer: str) -> int:
        codes, scales = _matrix(shards, f"{layer}.qweight"), _matrix(shards, f"{layer}.scales")
        order = shards.entries.get(f"{layer}.g_idx")
        room = codes.shape[0] * 8 * codes.dtype.itemsize
        inputs = order.shape[0] if order and order.shape[:1] > (0,) else room // bits
        if (
            codes.shape[1] != scales.shape[1]
            or not inputs <= room <= 8 * inputs
            or (not order and room % bits)
        ):
            raise _misfit(
                f"{layer}.qweight", codes, f"{bits}-bit codes of GPTQ with scales {scales.shape}"
            )
        return inputs * codes.shape[1]

    return _integer("gptq", entry, shards, count, bits, entry.get("checkpoint_format"))


def read_awq(entry: Mapping[str, Any], shards: Shards) -> Reading:
    """entry: the quantization_config. StoreError where the tensors are not those of an AWQ folder."""
    bits = _whole(entry, "bits" if "bits" in entry else "w_bit", shards, range(1, 9))
    layout = str(entry.get("version", entry.get("format", "gemm"))).lower()

    def count(layer: str) -> int:
        codes, scales = _matrix(shards, f"{layer}.qweight"), _matrix(shards, f"{layer}.scales")
        if layout.startswith("gemv"):
            return codes.nbytes * 8 // bits
        room, outputs = codes.shape[1] * 8 * codes.dtype.itemsize, scales.shape[1]
        if not outputs <= room <= 8 * outputs:
            raise _misfit(
                f"{layer}.qweight", codes, f"{bits}-bit codes of AWQ with scales {scales.shape}"
            )
        return codes.shape[0] * outputs

    return _integer("awq", entry, shards, count, bits, layout)


def read_compressed(entry: Mapping[str, Any], shards: Shards) -> Reading:
    """entry: the quantization_config. StoreError where the tensors or the format are not those that are known."""
    form, schemes = entry.get("format"), _schemes(entry, shards)
    if form not in _FORMATS:
        raise StoreError(
            f"{shards.folder}: compressed-tensors format {form!r} is not known; {', '.join(_FORMATS)} are"
        )
    words = _layers(shards, "weight_packed")
    plain = {
        layer for layer in _layers(shards, "weight_scale") if f"{layer}.weight" in shards.entries
    } - words
    if not words | plain:
        raise _none(shards, "weight_packed or .weight_scale")
    counts, padded = {layer: _elements(shards, layer) for layer in plain}, 0
    for layer in words:
        counts[layer], padding = _packed_count(shards, layer, _scheme_of(layer, schemes, shards))
        padded += padding
    notes = (
        [
            f"layers that state no number of inputs ({padded}): padding of their rows counts as weights"
        ]
        if padded
        else []
    )
    bits = {scheme.bits for scheme in schemes}
    return Reading(
        "compressed-tensors",
        pieces := list(_pieces(shards, _COMPRESSED, counts)),
        dense_layers(pieces),
        " ".join(str(entry[key]) for key in ("version", "format") if key in entry),
        parameters=_parameters(entry),
        stated_bits=float(bits.pop()) if len(bits) == 1 else None,
        notes=notes,
    )


@dataclass(frozen=True)
class _Scheme:
    """How one group of layers is quantized. group_size: None where there is one scale per channel or tensor."""

    targets: tuple[str, ...]
    bits: int
    group_size: int | None


def _schemes(entry: Mapping[str, Any], shards: Shards) -> list[_Scheme]:
    groups, found = entry.get("config_groups"), []
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if isinstance(weights, Mapping):
            bits = _whole(weights, "num_bits", shards, range(1, 17))
            grouped = weights.get("strategy") == "group"
            size = _whole(weights, "group_size", shards, range(1, 2**31)) if grouped else None
            targets = group.get("targets")
            found.append(
                _Scheme(tuple(map(str, targets if isinstance(targets, list) else ())), bits, size)
            )
    if not found:
        raise StoreError(
            f"{shards.folder}: config_groups of the quantization_config state no weights; {_AGAIN}"
        )
    return found


def _scheme_of(layer: str, schemes: list[_Scheme], shards: Shards) -> _Scheme:
    """That whose target is this layer's name or a pattern `re:...` of it, else that of its class."""
    if len(schemes) == 1:
        return schemes[0]
    try:
        for scheme in schemes:
            if any(
                layer == t or (t.startswith("re:") and re.match(t[3:], layer))
                for t in scheme.targets
            ):
                return scheme
    except re.error as error:
        raise StoreError(
            f"{shards.folder}: a target of config_groups is no pattern: {error}; {_AGAIN}"
        ) from None
    classes = [scheme for scheme in schemes if any(t.isidentifier() for t in scheme.targets)]
    if len(classes) != 1:
        raise StoreError(
            f"{shards.folder}: config_groups do not tell to which group {layer} belongs; {_AGAIN}"
        )
    return classes[0]


def _packed_count(shards: Shards, layer: str, scheme: _Scheme) -> tuple[int, bool]:
    """Weights behind the words of a row, and whether padding may be among them.

    A word holds 32 // bits codes; newer files of 3, 5, 6 or 7 bits let codes cross words, which
    groups tell.
    """
    codes, scales = (
        _matrix(shards, f"{layer}.weight_packed"),
        shards.entries.get(f"{layer}.weight_scale"),
    )
    out, row = codes.shape[0], codes.shape[1] * 8 * codes.dtype.itemsize
    order = shards.entries.get(f"{layer}.weight_g_idx")
    if order and order.shape[:1] > (0,):
        inputs, padding = order.shape[0], False
    elif scheme.group_size and scales and len(scales.shape) == 2:
        inputs, padding = min(scales.shape[1] * scheme.group_size, row // scheme.bits), False
    else:
        inputs, padding = row // 32 * (32 // scheme.bits), True
    if (
        not scales
        or scales.shape[:1] not in ((out,), (1,), ())
        or not 0 < inputs * scheme.bits <= row
    ):
        stated = scales.shape if scales else "missing"
        raise _misfit(
            f"{layer}.weight_packed", codes, f"{scheme.bits}-bit codes with weight_scale {stated}"
        )
    return out * inputs, padding


def _integer(
    source: Source, entry: Mapping[str, Any], shards: Shards, count: Count, bits: int, version: Any
) -> Reading:
    layers = _layers(shards, "qweight")
    if not layers:
        raise _none(shards, "qweight")
    pieces = list(_pieces(shards, _INTEGER, {layer: count(layer) for layer in layers}))
    version = None if version is None else str(version)
    return Reading(
        source, pieces, dense_layers(pieces), version, source, _parameters(entry), float(bits)
    )


def _pieces(shards: Shards, items: Mapping[str, str], counts: Mapping[str, int]) -> Iterator[Piece]:
    """Every tensor of the folder. counts: weights of each quantized layer."""
    for name, entry in shards.entries.items():
        layer, _, leaf = name.rpartition(".")
        if layer in counts and leaf in items:
            item = items[leaf]
            yield part_piece(
                name, layer, item, entry.nbytes, counts[layer] if item == "codes" else 0
            )
        elif leaf in _ACTIVATIONS:
            yield Piece(name, "other", entry.nbytes)
        else:
            yield dense_piece(name, entry.shape, entry.nbytes)


def _layers(shards: Shards, leaf: str) -> set[str]:
    return {name.removesuffix(f".{leaf}") for name in shards.entries if name.endswith(f".{leaf}")}


def _elements(shards: Shards, layer: str) -> int:
    entry = shards.entries[f"{layer}.weight"]
    return entry.nbytes // entry.dtype.itemsize


def _matrix(shards: Shards, name: str) -> Entry:
    entry = shards.entries.get(name)
    if entry is None or len(entry.shape) != 2 or 0 in entry.shape:
        raise StoreError(
            f"{shards.folder}: {name} is {entry.shape if entry else 'missing'}, not a matrix; {_AGAIN}"
        )
    return entry


def _whole(entry: Mapping[str, Any], key: str, shards: Shards, allowed: range) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
        raise StoreError(
            f"{shards.folder}: the quantization_config states {key}={value!r}; "
            f"{allowed.start} to {allowed.stop - 1} can be; {_AGAIN}"
        )
    return value


def _parameters(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in _LISTS and value is not None}


def _misfit(name: str, entry: Entry, expected: str) -> StoreError:
    return StoreError(
        f"{entry.file}: {name} {entry.dtype} {entry.shape} does not hold {expected}; {_AGAIN}"
    )


def _none(shards: Shards, leaf: str) -> StoreError:
    return StoreError(
        f"{shards.folder}: no tensor ends in .{leaf}, as its quantization_config says; {_AGAIN}"
    )
