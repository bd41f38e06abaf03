"""Folders that other programs quantized: their linear layers as uniform weights, read from the shards."""

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
            f"{shards.folder} states settings per layer (dynamic), which are not read; use one with a single setting"
        )
    weights = {}
    for name in sorted(
        key.removesuffix(".qweight") for key in shards.entries if key.endswith(".qweight")
    ):
        parts = {
            part: shards.tensor(f"{name}.{part}")
            for part in PARTS
            if f"{name}.{part}" in shards.entries
        }
        try:
            weights[name] = READERS[method](parts, entry)
        except ModelError as error:
            raise ModelError(f"{shards.folder}, layer {name}: {error}") from None
    return weights


def _gptq(parts: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Uniform:
    layout = entry.get("checkpoint_format", entry.get("format", "gptq"))
    return from_gptq(
        parts, _number(entry, "bits"), _number(entry, "group_size"), layout, bool(entry.get("sym"))
    )


def _awq(parts: Mapping[str, Tensor], entry: Mapping[str, Any]) -> Uniform:
    if str(entry.get("version", "gemm")).lower() != "gemm":
        raise ModelError(
            f"AWQ version {entry['version']!r} is not read; use a checkpoint of version 'gemm'"
        )
    return from_awq(
        parts, _number(entry, "bits", "w_bit"), _number(entry, "group_size", "q_group_size")
    )


def _number(entry: Mapping[str, Any], *keys: str) -> int:
    for key in keys:
        if isinstance(entry.get(key), int):
            return int(entry[key])
    raise ModelError(
        f"quantization_config states no whole number for {keys[0]}; correct it in config.json"
    )


READERS: dict[str, Reader] = {"gptq": _gptq, "awq": _awq}
