"""Folders of llm-compressor (`quant_method: compressed-tensors`), measured from their headers.

For a layer L with a weight of shape (out, in), b bits and `groups` groups of inputs:

    L.weight_packed      int32 (out, words)           codes, in words of 32 bits; or else
    L.weight             int8 or float8 (out, in)     codes, one an element
    L.weight_scale       (out, groups), (1,) or ()    scales
    L.weight_zero_point  int8, or packed in int32     zero points
    L.weight_g_idx       int32 (in,)                  the group of each input
    L.weight_shape       int64 (2,)                   out and in

The data of weight_shape, 16 bytes, are the only ones that are read. Where a folder has none, in is
the length of weight_g_idx; else groups * group_size; else as many codes as fit whole words, which
may be more or fewer than there are. The codes of a row are one stream of bits; in older files a
word held 32 // b whole codes. Bits and group sizes are those of
`config_groups`, each of which names its layers as targets. Source: compressed-tensors,
compressors/pack_quantized/helpers.py, `pack_to_int32`, and for older files
compressors/quantized_compressors/pack_quantized.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import regex

from qbench.errors import StoreError
from qbench.files.shards import Entry, Shards
from qbench.inspection.foreign_headers import (
    ADVICE,
    bits_along,
    group_order,
    layers_with,
    matrix,
    misfit,
    no_tensor,
    parameters_of,
    quantized_pieces,
    whole_number,
)
from qbench.inspection.pieces import Reading, dense_layers

PATTERN_SECONDS = 0.1  # for one layer's name; an honest pattern takes microseconds
_PARTS = {
    "weight_packed": "codes",
    "weight": "codes",
    "weight_scale": "scales",
    "weight_zero_point": "zero_points",
    "weight_g_idx": "permutations",
    "weight_shape": "other",
}
_FORMATS = (
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "mixed-precision",
)


@dataclass(frozen=True)
class _Scheme:
    """How one group of layers is quantized.

    targets: names of layers, patterns `re:...` of names, or classes of layers. group_size: inputs a
    scale, None where there is one scale per channel or tensor.
    """

    targets: tuple[str, ...]
    bits: int
    group_size: int | None


def read_compressed(entry: Mapping[str, Any], shards: Shards) -> Reading:
    """entry: the quantization_config. StoreError where tensors or format are not known ones."""
    schemes = _schemes(entry, shards)
    if entry.get("format") not in _FORMATS:
        raise StoreError(
            f"{shards.folder}: compressed-tensors format {entry.get('format')!r} is not known; "
            f"known are {', '.join(_FORMATS)}"
        )
    weight_counts, guessed = _weight_counts(shards, schemes)
    notes = []
    if guessed:
        notes.append(
            f"layers that state no number of inputs ({guessed}): as many weights are counted as "
            "fit whole words, which may be more or fewer than there are"
        )
    pieces = list(quantized_pieces(shards, _PARTS, weight_counts))
    versions = [str(entry[key]) for key in ("version", "format") if key in entry]
    bits = {scheme.bits for scheme in schemes}
    return Reading(
        source="compressed-tensors",
        pieces=pieces,
        dense=dense_layers(pieces),
        format_version=" ".join(versions),
        parameters=parameters_of(entry),
        stated_bits=float(bits.pop()) if len(bits) == 1 else None,
        notes=notes,
    )


def _weight_counts(shards: Shards, schemes: list[_Scheme]) -> tuple[dict[str, int], int]:
    """out * in of every quantized layer, and of how many layers that is a guess."""
    packed = layers_with(shards, "weight_packed")
    plain = layers_with(shards, "weight_scale") & layers_with(shards, "weight")
    plain -= packed
    if not packed and not plain:
        raise no_tensor(shards, "weight_packed or .weight_scale")
    counts = {}
    for layer in sorted(plain):
        weight = shards.entries[f"{layer}.weight"]
        counts[layer] = weight.nbytes // weight.dtype.itemsize
    guessed = 0
    for layer in sorted(packed):
        count, is_guess = _packed_count(shards, layer, _scheme_of(layer, schemes, shards))
        counts[layer] = count
        guessed += is_guess
    return counts, guessed


def _packed_count(shards: Shards, layer: str, scheme: _Scheme) -> tuple[int, bool]:
    """out * in of a layer of packed codes, and whether in is a guess."""
    codes = matrix(shards, f"{layer}.weight_packed")
    scales = shards.entries.get(f"{layer}.weight_scale")
    outputs = codes.shape[0]
    if not _scales_fit(scales, outputs):
        shape = scales.shape if scales else "missing"
        raise misfit(
            f"{layer}.weight_packed", codes, f"{scheme.bits}-bit codes with weight_scale {shape}"
        )
    if f"{layer}.weight_shape" in shards.entries:
        return outputs * _stated_inputs(shards, layer, scheme.bits, codes), False
    order = group_order(shards, f"{layer}.weight_g_idx")
    row_bits = bits_along(codes, 1)
    is_guess = False
    if order:
        inputs = order.shape[0]
    elif scheme.group_size and scales and len(scales.shape) == 2:
        # the last group may be shorter than the others: no more inputs than the row holds codes
        inputs = min(scales.shape[1] * scheme.group_size, row_bits // scheme.bits)
    else:
        inputs = row_bits // 32 * (32 // scheme.bits)
        is_guess = True
    if not 0 < inputs * scheme.bits <= row_bits:
        raise misfit(f"{layer}.weight_packed", codes, f"{inputs} {scheme.bits}-bit codes a row")
    return outputs * inputs, is_guess


def _stated_inputs(shards: Shards, layer: str, bits: int, codes: Entry) -> int:
    """in, as weight_shape says; StoreError where the codes (out, words) are not those of a shape.

    A row of in codes takes as many words as their stream, or, in older files, as whole codes fill.
    """
    name = f"{layer}.weight_shape"
    header = shards.entries[name]
    shape: list[int] = []
    if header.dtype.itemsize in (4, 8) and header.nbytes == 2 * header.dtype.itemsize:
        shape = shards.tensor(name).flatten().tolist()  # of another size it is not read
    if len(shape) == 2 and shape[0] == codes.shape[0] and shape[1] > 0:
        inputs = int(shape[1])
        if codes.shape[1] in (-(-inputs * bits // 32), -(-inputs // (32 // bits))):
            return inputs
    raise misfit(
        f"{layer}.weight_packed",
        codes,
        f"{bits}-bit codes of the matrix that {name} states, {shape or header.shape}",
    )


def _scales_fit(scales: Entry | None, outputs: int) -> bool:
    """Whether there is a scale per output, or one for the whole tensor."""
    return scales is not None and scales.shape[:1] in ((outputs,), (1,), ())


def _schemes(entry: Mapping[str, Any], shards: Shards) -> list[_Scheme]:
    """The scheme of every group of `config_groups` that quantizes weights."""
    groups = entry.get("config_groups")
    schemes = []
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            continue  # a group may quantize activations only
        bits = whole_number(weights, "num_bits", shards, range(1, 17))
        group_size = None
        strategy = weights.get("strategy")
        if strategy is None and weights.get("group_size") not in (None, -1):
            strategy = "group"  # as the library infers it
        if strategy == "group":
            group_size = whole_number(weights, "group_size", shards, range(1, 2**31))
        targets = group.get("targets")
        if not isinstance(targets, list):
            targets = []
        schemes.append(_Scheme(tuple(map(str, targets)), bits, group_size))
    if not schemes:
        raise StoreError(
            f"{shards.folder}: config_groups of the quantization_config state no weights; {ADVICE}"
        )
    return schemes


def _scheme_of(layer: str, schemes: list[_Scheme], shards: Shards) -> _Scheme:
    """That with a target for this layer's name, else the only one with a target for a class."""
    if len(schemes) == 1:
        return schemes[0]
    try:
        for scheme in schemes:
            if any(_names(target, layer) for target in scheme.targets):
                return scheme
    except regex.error as error:
        raise StoreError(
            f"{shards.folder}: a target of config_groups is no pattern: {error}; {ADVICE}"
        ) from None
    except TimeoutError:
        raise StoreError(
            f"{shards.folder}: a target of config_groups takes over {PATTERN_SECONDS} s to match "
            f"{layer}; write a simpler pattern there"
        ) from None
    # headers do not tell the class of a layer, so that two classes cannot be told apart
    of_classes = [
        scheme for scheme in schemes if any(target.isidentifier() for target in scheme.targets)
    ]
    if len(of_classes) != 1:
        raise StoreError(
            f"{shards.folder}: config_groups do not tell to which group {layer} belongs; {ADVICE}"
        )
    return of_classes[0]


def _names(target: str, layer: str) -> bool:
    """Whether a target is this layer's name, or a pattern that its name begins with."""
    if target == layer:
        return True
    if not target.startswith("re:"):
        return False
    # The standard library's matcher knows no end of time, and a folder may come from anywhere.
    return regex.match(target[3:], layer, timeout=PATTERN_SECONDS) is not None
