"""Folders in the layout of gptqmodel, AutoGPTQ and auto-round, read from headers alone.

They have the quant_method `gptq`, or `auto-round` (`auto_round.py`).

For a layer L with a weight of shape (out, in), b bits and `groups` groups of inputs:

    L.qweight  int32 (in*b/32, out)      codes
    L.qzeros   int32 (groups, out*b/32)  zero points
    L.scales   float16 (groups, out)     scales
    L.g_idx    int32 (in,)               the group of each input; older files leave it out

b need not be what the config states for all: `dynamic` of gptqmodel and `extra_config` of
auto-round give other bits to some layers. in is the length of g_idx where that is there, else what
b makes of the rows of qweight, where qzeros and scales tell b.
Source: gptqmodel, nn_modules/qlinear/__init__.py, `PackableQuantLinear`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from qbench.files.shards import Shards
from qbench.inspection.foreign_headers import (
    bits_along,
    group_order,
    integer_reading,
    layers_required,
    matrix,
    misfit,
    whole_number,
)
from qbench.inspection.pieces import Reading


def read_gptq(entry: Mapping[str, Any], shards: Shards) -> Reading:
    """entry: the quantization_config. StoreError where the tensors are not those of GPTQ."""
    bits = whole_number(entry, "bits", shards, range(1, 9))
    layers = layers_required(shards, "qweight")
    inputs = {layer: _inputs(shards, layer, bits) for layer in layers}
    weight_counts = {n: inputs[n] * shards.entries[f"{n}.qweight"].shape[1] for n in layers}
    version = entry.get("checkpoint_format", entry.get("packing_format"))
    if version is not None:
        version = str(version)
    source = str(entry.get("quant_method", "gptq"))
    reading = integer_reading(source, entry, shards, weight_counts, bits, version)
    stated = {bits, *_bits_of_some_layers(entry)}
    if stated == {bits}:
        return reading
    measured = {n: bits_along(shards.entries[f"{n}.qweight"], 0) // inputs[n] for n in layers}
    return replace(reading, stated_bits=None, notes=_unstated(measured, stated))


def _inputs(shards: Shards, layer: str, bits: int) -> int:
    """in of a layer. bits: as stated for all, for the message."""
    codes = matrix(shards, f"{layer}.qweight")
    scales = matrix(shards, f"{layer}.scales")
    order = group_order(shards, f"{layer}.g_idx")
    column_bits = bits_along(codes, 0)
    if order:  # it has the last word, and then a code may have from 1 to 8 bits
        inputs = order.shape[0]
        fits = inputs <= column_bits <= 8 * inputs
    else:
        zeros = matrix(shards, f"{layer}.qzeros")
        bits, rest = divmod(bits_along(zeros, 1), scales.shape[1])
        fits = not rest and 1 <= bits <= 8 and column_bits % bits == 0
        inputs = column_bits // bits if fits else 0
    if not fits or codes.shape[1] != scales.shape[1]:
        raise misfit(
            f"{layer}.qweight", codes, f"{bits}-bit codes of GPTQ with scales {scales.shape}"
        )
    return inputs


def _bits_of_some_layers(entry: Mapping[str, Any]) -> Iterator[int]:
    """The bits that `dynamic` or `extra_config` state of some layers."""
    for key in ("dynamic", "extra_config"):
        settings = entry.get(key)
        for value in settings.values() if isinstance(settings, Mapping) else ():
            if isinstance(value, Mapping) and type(value.get("bits")) is int:
                yield value["bits"]


def _unstated(measured: Mapping[str, int], stated: Collection[int]) -> list[str]:
    """A note where layers have bits that are not among the stated ones; measured: by layer."""
    layers = [layer for layer, bits in measured.items() if bits not in stated]
    if not layers:
        return []
    return [
        f"the config states codes of {', '.join(map(str, sorted(stated)))} bits, and "
        f"{len(layers)} layers have others, such as {measured[layers[0]]} bits in {layers[0]}"
    ]
