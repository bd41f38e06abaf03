"""Folders that other programs quantized: their layers as uniform weights, read from the shards.

A layer L is the tensors L.qweight, L.qzeros, L.scales and, of GPTQ, L.g_idx; of compressed-tensors
L.weight_packed and others. Its settings are those of `quantization_config` in the folder's
config.json:

    gptq  bits, group_size, sym; checkpoint_format (by other names: format), `gptq` unless stated;
          dynamic, which leaves layers out ("-:PATTERN": {}) or gives them other settings: both are
          seen on the tensors, and no pattern of a file is matched
    awq   bits or w_bit, group_size or q_group_size; version, which must be `gemm`
    compressed-tensors  what `compressed_settings.py` says

What the tensors hold stands in `gptq.py`, `awq.py` and `compressed_tensors.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from qbench.errors import ConfigError, ModelError, StoreError
from qbench.exchange.awq import from_awq
from qbench.exchange.compressed_settings import packed_schemes, scheme_in_words
from qbench.exchange.compressed_tensors import PARTS as COMPRESSED_PARTS
from qbench.exchange.compressed_tensors import (
    dequantize_compressed,
    from_compressed,
    groups_are_in_order,
)
from qbench.exchange.gptq import (
    dequantize_gptq,
    from_gptq,
    groups_are_runs,
    has_order,
    measured_settings,
)
from qbench.exchange.integer_layout import PARTS
from qbench.files.shards import Shards
from qbench.formats import Dense, Uniform


class Reader(NamedTuple):
    """How the layers of one program are read.

    read: from a layer's tensors by part and the quantization_config to its weight. parts: which
    tensors are taken; the first one tells the quantized layers from others. check: raises
    ModelError where the quantization_config alone tells that the folder cannot be read.
    """

    read: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Uniform | Dense]
    parts: tuple[str, ...] = (*PARTS, "g_idx")
    check: Callable[[Mapping[str, Any]], object] = lambda entry: None


def read_foreign(entry: Mapping[str, Any], shards: Shards) -> dict[str, Uniform | Dense]:
    """The quantized layers of another program's folder by name. entry: its quantization_config.

    Layers whose groups are no runs of equal length (act-order, or a last group that is shorter) are
    dequantized, exactly, and a warning says how many. StoreError for any other quant_method, where
    no layer is quantized, and where one has a part that its reader does not take; ModelError naming
    the layer that cannot be read.
    """
    method = entry.get("quant_method")
    if method not in READERS:
        raise StoreError(
            f"{shards.folder} has quant_method {method!r}; known are qbench, {', '.join(READERS)}"
        )
    reader = READERS[method]
    reader.check(entry)
    codes = f".{reader.parts[0]}"
    layers = [name.removesuffix(codes) for name in shards.entries if name.endswith(codes)]
    if not layers:
        raise StoreError(
            f"{shards.folder}: no tensor ends in {codes}, as quant_method {method!r} says; fetch "
            "the checkpoint again"
        )
    _refuse_other_parts(shards, set(layers), reader.parts)
    weights: dict[str, Uniform | Dense] = {}
    for layer in sorted(layers):
        tensors = _parts(shards, layer, reader.parts)
        try:
            weights[layer] = reader.read(tensors, entry)
        except (ModelError, ConfigError) as error:
            raise type(error)(f"{shards.folder}, layer {layer}: {error}") from None
    dequantized = sum(isinstance(weight, Dense) for weight in weights.values())
    if dequantized:
        warnings.warn(
            f"{shards.folder}: the groups of {dequantized} layers are scattered over the inputs "
            "or of unequal length; they are dequantized, exactly",
            stacklevel=3,
        )
    return weights


def stated_in_words(entry: Mapping[str, Any]) -> str:
    """Bits and groups of a quantization_config, such as `4b g128`.

    ModelError where those of compressed-tensors cannot be read.
    """
    if entry.get("quant_method") == "compressed-tensors":
        return scheme_in_words(entry)
    bits = entry.get("bits", entry.get("w_bit"))
    group = entry.get("group_size", entry.get("q_group_size"))
    return f"{bits}b {'channel' if group in (None, -1) else f'g{group}'}"


def _refuse_other_parts(shards: Shards, layers: set[str], parts: tuple[str, ...]) -> None:
    """StoreError where a quantized layer has a tensor that is neither of `parts` nor its bias."""
    for name in shards.entries:
        layer, _, part = name.rpartition(".")
        if layer in layers and part not in (*parts, "bias"):
            raise StoreError(
                f"{shards.folder}: the quantized layer {layer} has the part {part}, and qbench "
                f"reads {', '.join(parts)} and bias; fetch the checkpoint again, or evaluate it "
                "with the program it is for"
            )


def _parts(shards: Shards, layer: str, parts: tuple[str, ...]) -> dict[str, Tensor]:
    """Those of `parts` that the layer has."""
    tensors = {}
    for part in parts:
        name = f"{layer}.{part}"
        if name in shards.entries:
            tensors[part] = shards.tensor(name)
    return tensors


def _gptq(tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Uniform | Dense:
    bits = _whole_number(entry, "bits")
    group_size = _whole_number(entry, "group_size")
    layout = entry.get("checkpoint_format", entry.get("format", "gptq"))
    symmetric = _flag(entry, "sym")
    reordered = _flag(entry, "desc_act")
    if entry.get("dynamic"):
        bits, group_size = measured_settings(tensors, group_size, _other_group_sizes(entry))
    runs = groups_are_runs(tensors, bits, group_size)
    if reordered and len(tensors["scales"]) > 1 and not has_order(tensors):
        raise ModelError(
            "quantization_config states desc_act=true, and there is no g_idx to say which inputs "
            "share a scale; fetch the checkpoint again"
        )
    if runs:
        return from_gptq(tensors, bits, group_size, layout, sym=symmetric)
    return Dense(dequantize_gptq(tensors, bits, group_size, layout))


def _auto_round(tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Uniform | Dense:
    """auto-round's own layout is GPTQ's; what it gives to single layers is its `extra_config`."""
    packing = entry.get("packing_format")
    if not isinstance(packing, str) or packing not in AUTO_ROUND:
        raise ModelError(
            f"packing_format {packing!r} of auto-round cannot be read; have auto-round write "
            f"{' or '.join(AUTO_ROUND)}"
        )
    layout = {"checkpoint_format": AUTO_ROUND[packing], "dynamic": entry.get("extra_config")}
    return _gptq(tensors, {**entry, **layout})


def _other_group_sizes(entry: Mapping[str, Any]) -> list[int]:
    """The group sizes that `dynamic` gives to some layers."""
    dynamic = entry["dynamic"]
    if not isinstance(dynamic, Mapping):
        raise ModelError(f"dynamic is {type(dynamic).__name__}, not an object; correct config.json")
    settings = [value for value in dynamic.values() if isinstance(value, Mapping)]
    sizes = [value.get("group_size") for value in settings]
    return [size for size in sizes if type(size) is int]


def _awq(tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Uniform:
    _flag(entry, "zero_point")  # zero points are in the tensors either way
    if str(entry.get("version", "gemm")).lower() != "gemm":
        raise ModelError(
            f"AWQ version {entry['version']!r} is not read; use a checkpoint of version 'gemm'"
        )
    return from_awq(
        tensors,
        bits=_whole_number(entry, "bits", "w_bit"),
        group_size=_whole_number(entry, "group_size", "q_group_size"),
    )


def _compressed(tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Uniform | Dense:
    schemes = packed_schemes(entry)
    if groups_are_in_order(tensors, schemes):
        return from_compressed(tensors, schemes)
    return Dense(dequantize_compressed(tensors, schemes))


def _whole_number(entry: Mapping[str, Any], *keys: str) -> int:
    """The first of these entries that is an integer: programs call the same setting otherwise."""
    for key in keys:
        if type(entry.get(key)) is int:  # True is no number of bits
            return int(entry[key])
    raise ModelError(
        f"quantization_config states no whole number for {keys[0]}; correct it in config.json"
    )


def _flag(entry: Mapping[str, Any], key: str) -> bool:
    """An entry that is true or false, and false where there is none; "false" is neither."""
    value = entry.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelError(
            f"quantization_config states {key}={value!r}, which is neither true nor false; "
            "correct it in config.json"
        )
    return bool(value)


# auto-round's packing_format -> GPTQ's checkpoint_format: how zero points are stored. Source:
# auto_round_extension/torch, qlinear_torch.py and qlinear_torch_zp.py.
AUTO_ROUND = {"auto_round": "gptq_v2", "auto_round:auto_gptq": "gptq"}
READERS: dict[str, Reader] = {
    "gptq": Reader(_gptq),
    "auto-round": Reader(_auto_round),
    "awq": Reader(_awq, PARTS),
    "compressed-tensors": Reader(_compressed, COMPRESSED_PARTS, packed_schemes),
}
