"""How each verb of a method goes over a model, layer by layer or block by block.

A layer that the scheme leaves as it is becomes a weight of the format `dense`, so that it is
stored, counted and computed with like any other.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qbench.calibration.block_window import BlockWindow
from qbench.calibration.layer_error import relative_error
from qbench.calibration.walk import Progress
from qbench.contracts import (
    BlockInputs,
    BlockResult,
    LinearStats,
    Scheme,
    WeightFormat,
    verb_of,
)
from qbench.errors import ConfigError, MethodError, QbenchError, reason_of
from qbench.formats import Dense, require_storable
from qbench.models.blocks import decoder_blocks, linears, quantizable, read_weight, write_weight
from qbench.models.head import require_head, untie_head
from qbench.models.paging import resident
from qbench.registry import get_method
from qbench.weight_range import require_computable


def by_weight(
    model: nn.Module,
    method: Any,
    scheme: Scheme,
    device: torch.device,
    progress: Progress,
    weights: dict[str, WeightFormat],
) -> dict[str, Any]:
    """Quantize all layers by a method that looks at the weights alone.

    weights: gets each quantized weight by its layer's full name. Returns the log, by block: the
    error of each layer's weight. MethodError naming the layer where the method fails.
    """
    log: dict[str, Any] = {}
    count = len(quantizable(model))
    prefix, blocks = decoder_blocks(model)
    for index, block in enumerate(blocks):
        with resident(block):
            for own_name, layer in linears(block).items():
                name = f"{prefix}.{index}.{own_name}"
                progress(len(weights) / count, f"layer {len(weights) + 1}/{count}")
                asked = scheme.of_layer(name)
                if asked is None:
                    weights[name] = Dense.kept(read_weight(layer))
                    continue
                original = read_weight(layer).to(device)
                with _errors_name(name):
                    weight = method.quantize_weight(original, asked)
                    error = relative_error(original, weight.dequantize())
                _note_error(log, name, "weight_errors", error)
                _put(name, layer, weight)
                weights[name] = weight
    return log


def by_linear(
    walk: Callable[..., None], method: Any, scheme: Scheme, weights: dict[str, WeightFormat]
) -> dict[str, Any]:
    """Quantize all layers by a method that also looks at each layer's inputs.

    walk: `walk_linears` with all of its arguments but `visit`. weights: gets each quantized weight
    by its layer's full name. Returns the log, by block: the error of each layer's output on the
    calibration text. MethodError naming the layer where the method fails.
    """
    log: dict[str, Any] = {}

    def visit(name: str, layer: nn.Module, stats: LinearStats) -> None:
        asked = scheme.of_layer(name)
        if asked is None:
            weights[name] = Dense.kept(read_weight(layer))
            return
        # Of the walk, only the products of activations may be computed in a lower precision.
        with torch.autocast(stats.hessian.device.type, enabled=False):
            original = read_weight(layer)
            with _errors_name(name):
                weight = method.quantize_linear(original, stats, asked)
                error = relative_error(original, weight.dequantize(), stats.hessian)
            _note_error(log, name, "output_errors", error)
            _put(name, layer, weight)
        weights[name] = weight

    walk(visit=visit)
    return log


def by_block(
    walk: Callable[..., None], method: Any, scheme: Scheme, weights: dict[str, WeightFormat]
) -> dict[str, Any]:
    """Quantize all layers by a method that sees blocks.

    walk: `walk_blocks` with all of its arguments but `visit`. weights: gets each quantized weight
    by its layer's full name. Returns the method's log, by block. MethodError naming the block where
    the method fails, or returns other layers or bits than it was asked for.
    """
    log: dict[str, Any] = {}

    def visit(name: str, block: nn.Module, inputs: BlockInputs, targets: list[Tensor]) -> None:
        # In a window the names of layers begin with the numbers of their blocks.
        prefix = name.rpartition(".")[0] if isinstance(block, BlockWindow) else name
        layers = linears(block)
        asked = scheme.of_block({layer: f"{prefix}.{layer}" for layer in layers})
        wanted = asked.of_layers(layers)
        result = BlockResult({})
        if wanted:
            with _errors_name(name):
                result = method.quantize_block(block, inputs, targets, asked)
        if not isinstance(result, BlockResult):
            raise MethodError(
                f"block {name}: the method returned a {type(result).__name__}; give a BlockResult"
            )
        _require_layers(name, result, wanted)
        _apply(name, block, result)
        kept: dict[str, WeightFormat] = {}
        for layer in layers:
            if layer not in wanted:
                kept[layer] = Dense.kept(read_weight(layers[layer]))
        result = replace(result, weights={**result.weights, **kept})
        results = {name: result}
        if isinstance(block, BlockWindow):
            results = {f"{prefix}.{key}": own for key, own in block.by_block(result).items()}
        for own_name, own in results.items():
            for layer, weight in own.weights.items():
                weights[f"{own_name}.{layer}"] = weight
            if own.log:
                log[own_name] = dict(own.log)

    walk(visit=visit)
    return log


def _apply(name: str, block: nn.Module, result: BlockResult) -> None:
    """Let a block compute with its quantized weights and its new parameters.

    MethodError naming the block where it has no such parameter, or one of another shape.
    """
    known = dict(block.named_parameters(remove_duplicate=False))
    for key, value in result.parameters.items():  # such as a norm into which a scale was folded
        shape = tuple(known[key].shape) if key in known else None
        if shape != tuple(value.shape):
            has = "it has no such parameter" if shape is None else f"its own is {shape}"
            raise MethodError(
                f"block {name}: the method returned parameter {key!r} of shape "
                f"{tuple(value.shape)}, and {has}; give values for parameters of the block"
            )
        known[key].data.copy_(value)
    layers = linears(block)
    for layer, weight in result.weights.items():
        _put(f"{name}.{layer}", layers[layer], weight)


def _require_layers(name: str, result: BlockResult, wanted: Mapping[str, Scheme]) -> None:
    """MethodError where a block's weights are not those that were asked for, by layer."""
    if result.weights.keys() != wanted.keys():
        odd = sorted(result.weights.keys() ^ wanted.keys())
        raise MethodError(
            f"block {name}: the method returned other layers than it was asked for; they differ "
            f"in {odd}"
        )
    for layer, asked in wanted.items():
        bits = getattr(result.weights[layer], "bits", asked.bits)
        if bits != asked.bits:
            raise MethodError(
                f"layer {name}.{layer}: {asked.bits} bits were asked for, and the method gave "
                f"{bits}; let the method ask its scheme for each layer (`of_layer`), or leave out "
                "--layers that differ within a block"
            )


def _note_error(log: dict[str, Any], name: str, key: str, error: float | None) -> None:
    """Put the error of a layer into the log of its block. name: `model.layers.3.mlp.down_proj`."""
    block, number, layer = re.split(r"\.(\d+)\.", name, maxsplit=1)
    if error is not None:
        log.setdefault(f"{block}.{number}", {}).setdefault(key, {})[layer] = error


@contextmanager
def _errors_name(layer: str) -> Iterator[None]:
    """A context in which any error becomes a MethodError that names the layer or block."""
    try:
        yield
    except QbenchError as error:
        raise MethodError(f"layer {layer}: {error}") from error
    except Exception as error:
        raise MethodError(f"layer {layer}: {reason_of(error)}") from error


def _put(name: str, layer: Any, weight: WeightFormat) -> None:
    """Let a layer compute with its quantized weight.

    MethodError where that is not finite, has another shape, or is of no class that can be saved.
    """
    with _errors_name(name):
        require_storable(weight)
    for part in weight.to_tensors().values():
        if not torch.isfinite(part).all():
            raise MethodError(f"layer {name}: the quantized weight is not finite")
    dense = weight.dequantize()
    shape = read_weight(layer).shape
    if dense.shape != shape:
        raise MethodError(
            f"layer {name}: the quantized weight is {tuple(dense.shape)}, and the layer's own "
            f"{tuple(shape)}; quantize the weight that was given"
        )
    # In the layer's dtype before it moves: between devices every byte counts.
    write_weight(layer, dense.to(layer.weight.dtype))


def head_method(method: Any, bits: int) -> Any:
    """The method for the head: `method` itself if it looks at weights alone and supports the bits.

    Else it is round-to-nearest, since no layer follows the head by which it could be calibrated.
    """
    low, high = method.bits
    if verb_of(method) == "quantize_weight" and low <= bits <= high:
        return method
    return get_method("rtn")


def check_head(model: Any, method: Any, scheme: Scheme) -> None:
    """ConfigError where a model's head cannot have the scheme's `head_bits`."""
    if scheme.head_bits is None:
        return
    name, head = require_head(model)
    used = head_method(method, scheme.head_bits)
    low, high = used.bits
    if not low <= scheme.head_bits <= high:
        raise ConfigError(
            f"--head-bits {scheme.head_bits}: the head is quantized by {used.name}, which supports "
            f"{low} to {high} bits"
        )
    weight = read_weight(head)
    scheme.group_length(weight.shape[1], name)
    require_computable(weight, name)


def quantize_head(
    model: Any, method: Any, scheme: Scheme, weights: dict[str, WeightFormat]
) -> dict[str, Any]:
    """Put the quantized head into `weights`, and let the model compute with it.

    A head that is tied to the embedding gets a weight of its own, which is counted; the embedding
    stays as it is. Returns the manifest's entry for the head; nothing without `head_bits`.
    """
    if scheme.head_bits is None:
        return {}
    name, head = require_head(model)
    tied = untie_head(model)
    used = head_method(method, scheme.head_bits)
    with _errors_name(name):
        asked = Scheme(scheme.head_bits, scheme.group_size, scheme.symmetric)
        weights[name] = used.quantize_weight(read_weight(head), asked)
    _put(name, head, weights[name])
    return {"head": {"layer": name, "method": used.name, "bits": scheme.head_bits, "untied": tied}}
