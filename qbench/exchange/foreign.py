"""Folders that other programs quantized: their layers as uniform weights, read from the shards.

A layer L is the tensors L.qweight, L.qzeros, L.scales and, of GPTQ, L.g_idx. Its settings are those
of `quantization_config` in the folder's config.json:

    gptq  bits, group_size, sym; checkpoint_format (by other names: format), `gptq` unless stated
    awq   bits or w_bit, group_size or q_group_size; version, which must be `gemm`

What the tensors hold stands in `gptq.py` and `awq.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from qbench.errors import ModelError, StoreError
from qbench.exchange.awq import from_awq
from qbench.exchange.gptq import from_gptq
from qbench.files.shards import Shards
from qbench.formats import Uniform

PARTS = ("qweight", "qzeros", "scales", "g_idx")
Reader = Callable[[Mapping[str, Tensor], Mapping[str, Any]], Uniform]


def read_foreign(entry: Mapping[str, Any], shards: Shards) -> dict[str, Uniform]:
    """The quantized layers of a GPTQ or AWQ folder by name. entry: its quantization_config.

    StoreError for any other quant_method, ModelError naming the layer that cannot be a uniform
    weight.
    """
    method = entry.get("quant_method")
    if method not in READERS:
        raise StoreError(
            f"{shards.folder} has quant_method {method!r}; read are qbench, {', '.join(READERS)}"
        )
    if entry.get("dynamic"):
        raise ModelError(
            f"{shards.folder} states settings per layer (dynamic), which are not read; "
            "use one with a single setting"
        )
    layers = [name.removesuffix(".qweight") for name in shards.entries if name.endswith(".qweight")]
    weights = {}
    for layer in sorted(layers):
        tensors = _parts(shards, layer)
        try:
            weights[layer] = READERS[method](tensors, entry)
        except ModelError as error:
            raise ModelError(f"{shards.folder}, layer {layer}: {error}") from None
    return weights


def _parts(shards: Shards, layer: str) -> dict[str, Tensor]:
    """Those of PARTS that the layer has."""
    tensors = {}
    for part in PARTS:
        name = f"{layer}.{part}"
        if name in shards.entries:
            tensors[part] = shards.tensor(name)
    return tensors


def _gptq(tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Uniform:
    return from_gptq(
        tensors,
        bits=_whole_number(entry, "bits"),
        group_size=_whole_number(entry, "group_size"),
        checkpoint_format=entry.get("checkpoint_format", entry.get("format", "gptq")),
        sym=bool(entry.get("sym")),
    )


def _awq(tensors: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Uniform:
    if str(entry.get("version", "gemm")).lower() != "gemm":
        raise ModelError(
            f"AWQ version {entry['version']!r} is not read; use a checkpoint of version 'gemm'"
        )
    return from_awq(
        tensors,
        bits=_whole_number(entry, "bits", "w_bit"),
        group_size=_whole_number(entry, "group_size", "q_group_size"),
    )


def _whole_number(entry: Mapping[str, Any], *keys: str) -> int:
    """The first of these entries that is an integer: programs call the same setting otherwise."""
    for key in keys:
        if isinstance(entry.get(key), int):
            return int(entry[key])
    raise ModelError(
        f"quantization_config states no whole number for {keys[0]}; correct it in config.json"
    )


READERS: dict[str, Reader] = {"gptq": _gptq, "awq": _awq}
