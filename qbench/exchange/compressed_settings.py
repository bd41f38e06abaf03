"""What the quantization_config of a compressed-tensors folder states, as far as it can be computed.

    format          pack-quantized; by group where it is mixed-precision
    config_groups   by any name: targets, format, and of weights, as a table
      num_bits        1 to 8
      type            int
      strategy        group, channel or tensor
      group_size      inputs per scale, of `group`
      symmetric       whether there are no zero points, true unless stated
    kv_cache_scheme, sparsity_config, moe_sparsity_config, transform_config, and of any group, also
    one without weights, input_activations and output_activations   change the numbers beside the
                  weights: such folders are refused

Targets are patterns of names. Which group a layer belongs to is seen on its tensors, and no pattern
of a file is matched. Source: compressed-tensors, quantization/quant_config.py, quant_scheme.py and
quant_args.py; the formats: config/base.py, `CompressionFormat`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qbench.errors import ModelError
from qbench.exchange.compressed_tensors import PackedScheme

FORMAT = "pack-quantized"
STRATEGIES = ("group", "channel", "tensor")
_ELSEWHERE = "use the model before it was compressed, or evaluate it with the program it is for"
# What changes the numbers beside the weights, and what it is.
_BESIDE = {
    "kv_cache_scheme": "a quantized cache of keys and values",
    "transform_config": "rotations of the activations",
    "moe_sparsity_config": "layers of fewer experts",
}
_OF_ACTIVATIONS = ("input_activations", "output_activations")


def packed_schemes(entry: Mapping[str, Any]) -> list[PackedScheme]:
    """The schemes of config_groups; entry: the quantization_config.

    ModelError naming the format, or what else is asked beside packed integer weights.
    """
    for key, words in _BESIDE.items():
        if entry.get(key):
            raise ModelError(
                f"compressed-tensors with {key}, {words}, is not computed here; {_ELSEWHERE}"
            )
    sparsity = entry.get("sparsity_config")
    form = sparsity.get("format") if isinstance(sparsity, Mapping) else sparsity
    if form not in (None, "dense"):
        raise _other_format(form)
    groups = entry.get("config_groups")
    if not isinstance(groups, Mapping):
        raise ModelError(
            f"quantization_config states config_groups={type(groups).__name__}, not an object; "
            "correct it in config.json"
        )
    schemes = []
    for name, group in groups.items():
        weights = _weights_alone(name, group)
        if weights is not None:
            schemes.append(_scheme(weights, group.get("format") or entry.get("format")))
    if not schemes:
        raise ModelError(
            "config_groups of the quantization_config state no weights; correct it in config.json"
        )
    return schemes


def scheme_in_words(entry: Mapping[str, Any]) -> str:
    """Such as `4b g128`, of several groups `4b/8b g128`. Raises what `packed_schemes` raises."""
    schemes = packed_schemes(entry)
    bits = sorted({f"{scheme.bits}b" for scheme in schemes})
    sizes = {scheme.group_size for scheme in schemes}
    groups = sorted("channel" if size is None else f"g{size}" for size in sizes)
    return f"{'/'.join(bits)} {'/'.join(groups)}"


def _inferred_strategy(size: Any) -> str:
    """The strategy of weights that state none, as the library infers it from the group size."""
    if size is None:
        return "tensor"
    return "channel" if size == -1 else "group"


def _weights_alone(name: str, group: Any) -> Mapping[str, Any] | None:
    """What a group says of weights, None where nothing; ModelError where it says something else.

    name: of the group. Some folders give a list of targets, and `name` then is a scheme's.
    """
    if not isinstance(group, Mapping):
        raise ModelError(
            f"config_groups state {name!r} as a {type(group).__name__}, which does not tell what "
            f"is quantized; only an object with weights is read; {_ELSEWHERE}"
        )
    for key in _OF_ACTIVATIONS:
        if group.get(key):
            raise ModelError(
                f"compressed-tensors with {key}, quantized activations of the group {name!r}, is "
                f"not computed here; {_ELSEWHERE}"
            )
    weights = group.get("weights")
    if weights is not None and not isinstance(weights, Mapping):
        raise ModelError(
            f"config_groups state the weights of {name!r} as a {type(weights).__name__}, not an "
            "object; correct it in config.json"
        )
    return weights


def _scheme(weights: Mapping[str, Any], layout: Any) -> PackedScheme:
    """The scheme of one group's weights. layout: the group's format."""
    if layout != FORMAT:
        raise _other_format(layout)
    if weights.get("type", "int") != "int":
        raise _other_format(f"{layout} of type {weights['type']}")
    bits = _whole_number(weights, "num_bits", range(1, 9))
    size = weights.get("group_size")
    strategy = weights.get("strategy")
    if strategy is None:
        strategy = _inferred_strategy(size)
    if strategy not in STRATEGIES:
        raise ModelError(
            f"config_groups state the strategy {strategy!r}; qbench reads "
            f"{', '.join(STRATEGIES)}; {_ELSEWHERE}"
        )
    group_size = None
    if strategy == "group":
        group_size = _whole_number(weights, "group_size", range(1, 2**31))
    symmetric = weights.get("symmetric", True)
    if not isinstance(symmetric, bool):
        raise ModelError(
            f"config_groups state symmetric={symmetric!r}, which is neither true nor false; "
            "correct it in config.json"
        )
    return PackedScheme(bits, group_size, symmetric)


def _whole_number(weights: Mapping[str, Any], key: str, allowed: range) -> int:
    value = weights.get(key)
    if type(value) is not int or value not in allowed:  # True is no number of bits
        raise ModelError(
            f"config_groups state {key}={value!r}; it must be from {allowed.start} to "
            f"{allowed.stop - 1}; correct it in config.json"
        )
    return value


def _other_format(name: Any) -> ModelError:
    return ModelError(
        f"the format {name!r} of compressed-tensors is not read, only {FORMAT!r} is; {_ELSEWHERE}"
    )
