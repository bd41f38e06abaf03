"""The common interface: `quantize(model, method, scheme, calibration)` gives a `QuantizedModel`; `.save`, `load`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qbench.calibration.walk import Progress, walk_blocks, walk_linears
from qbench.calibration.windows import windows
from qbench.checkpoint import folder as checkpoint
from qbench.contracts import (
    BlockInputs,
    BlockResult,
    LinearStats,
    Scheme,
    WeightFormat,
    check_scheme,
    trains,
    verb_of,
)
from qbench.errors import ConfigError, MethodError, QbenchError
from qbench.formats import bits_per_weight
from qbench.models.blocks import linears, quantizable, read_weight, write_weight
from qbench.models.experts import unfuse_experts
from qbench.models.source import DTYPES, find_model, load_model
from qbench.registry import get_method, parameters


@dataclass
class QuantizedModel:
    """A model whose linear layers hold dequantized weights or are packed, with the quantized weights beside it.

    model: a transformers model, ready to run. weights: quantized weight by the full name of its
    layer. manifest: method, parameters and scheme, JSON-able; saved as `quantization_config`.
    """

    model: Any
    tokenizer: Any
    weights: dict[str, WeightFormat]
    manifest: dict[str, Any]
    log: dict[str, Any] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> dict[str, float]:
        """Measured bits per quantized weight: `total`, and by part."""
        return bits_per_weight(self.weights.values())

    def save(self, folder: str | Path) -> Path:
        """Write a Hugging Face directory with packed weights, whole or not at all. StoreError where it cannot."""
        return checkpoint.save(
            Path(folder), self.model, self.tokenizer, self.weights, self.manifest, self.log
        )


def load(folder: str | Path, dtype: str = "auto", packed: bool = True) -> QuantizedModel:
    """Read what `save` wrote; nothing in the folder is executed.

    dtype: of everything that is not quantized; `auto` is what the folder states. packed: linear
    layers stay packed and take the memory that they take on the disk; False dequantizes them once,
    which computes faster without a kernel. StoreError where the directory is damaged, and by name
    where a tensor is missing or unexpected.
    """
    model, tokenizer, weights, manifest = checkpoint.load(Path(folder), dtype, packed)
    return QuantizedModel(model, tokenizer, weights, manifest, checkpoint.read_log(Path(folder)))


def quantize(
    model: Any,
    method: Any,
    scheme: Scheme,
    calibration: Tensor | Sequence[str] | None = None,
    *,
    tokenizer: Any = None,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int = 8,
    progress: Progress = lambda fraction, text: None,
) -> QuantizedModel:
    """Quantize every linear layer inside the decoder's blocks.

    model: a name, hub id or folder, or a transformers model, which is changed in place. method: a
    name or a method object. calibration: token ids (samples, length), or texts, where the method
    needs them. device: where the work is done, block by block. dtype: of the matrix products of the
    calibration walk, a speed-up where the hardware computes in bfloat16. Raises ConfigError before
    any work where the scheme does not fit, MethodError naming the layer where the method fails.
    """
    method = get_method(method) if isinstance(method, str) else method
    if isinstance(model, str):
        model, tokenizer = load_model(find_model(model), "float32")
    unfuse_experts(model)
    check_layers(model, method, scheme)
    verb = verb_of(method)
    log: dict[str, Any] = {}
    calibrated: dict[str, Any] = {}
    if verb == "quantize_weight":
        weights = _by_weight(model, method, scheme, torch.device(device), progress)
    else:
        tokens = _tokens(calibration, tokenizer, method)
        digest = hashlib.sha256(tokens.cpu().numpy().tobytes()).hexdigest()[:12]
        calibrated = {"calibration": {"tokens": list(tokens.shape), "sha256": digest}}
        # A method that trains says how large its steps are.
        size = method.batch_size if trains(method) else batch_size
        where: dict[str, Any] = {
            "device": torch.device(device),
            "batch_size": size,
            "dtype": DTYPES[dtype],
        }
        if verb == "quantize_linear":
            weights = _by_linear(
                partial(walk_linears, model, tokens, progress=progress, **where), method, scheme
            )
        else:
            walk = partial(walk_blocks, model, tokens, progress=progress, **where)
            weights, log = _by_block(walk, method, scheme)
    manifest = calibrated | {
        "method": method.name,
        "paper": method.paper,
        "params": parameters(method),
        "scheme": {
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "symmetric": scheme.symmetric,
        },
    }
    return QuantizedModel(model, tokenizer, weights, manifest, log)


def check_layers(model: nn.Module, method: Any, scheme: Scheme) -> None:
    """ConfigError where the scheme does not fit the method or a layer; MethodError where weights are not finite."""
    check_scheme(method, scheme)
    for name, layer in quantizable(model).items():
        weight = read_weight(layer)
        scheme.group_length(weight.shape[1], name)
        if not weight.is_meta and not torch.isfinite(weight).all():
            bad = int((~torch.isfinite(weight)).sum())
            raise MethodError(
                f"{bad} of the {weight.numel()} weights of {name} are NaN or infinite; repair the checkpoint"
            )


def _by_weight(
    model: nn.Module, method: Any, scheme: Scheme, device: torch.device, progress: Progress
) -> dict[str, WeightFormat]:
    weights: dict[str, WeightFormat] = {}
    layers = quantizable(model)
    for i, (name, layer) in enumerate(layers.items()):
        progress(i / len(layers), f"layer {i + 1}/{len(layers)}")
        found = _attempt(
            name, partial(method.quantize_weight, read_weight(layer).to(device), scheme)
        )
        weights[name] = _finite(name, found)
        write_weight(layer, weights[name].dequantize())
    return weights


def _by_linear(walk: Callable[..., None], method: Any, scheme: Scheme) -> dict[str, WeightFormat]:
    weights: dict[str, WeightFormat] = {}

    def visit(name: str, layer: nn.Module, stats: LinearStats) -> None:
        with torch.autocast(stats.hessian.device.type, enabled=False):
            found = _attempt(
                name, partial(method.quantize_linear, read_weight(layer), stats, scheme)
            )
            weights[name] = _finite(name, found)
            write_weight(layer, weights[name].dequantize())

    walk(visit=visit)
    return weights


def _by_block(
    walk: Callable[..., None], method: Any, scheme: Scheme
) -> tuple[dict[str, WeightFormat], dict[str, Any]]:
    weights: dict[str, WeightFormat] = {}
    log: dict[str, Any] = {}

    def visit(name: str, block: nn.Module, inputs: BlockInputs, targets: list[Tensor]) -> None:
        result: BlockResult = _attempt(
            name, partial(method.quantize_block, block, inputs, targets, scheme)
        )
        layers = linears(block)
        if result.weights.keys() != layers.keys():
            odd = sorted(result.weights.keys() ^ layers.keys())
            raise MethodError(
                f"block {name}: the method returned other layers than it has; they differ in {odd}"
            )
        for layer, weight in result.weights.items():
            weights[f"{name}.{layer}"] = _finite(f"{name}.{layer}", weight)
            write_weight(layers[layer], weight.dequantize())
        for key, value in result.parameters.items():
            block.get_parameter(key).data.copy_(value)
        if result.log:
            log[name] = dict(result.log)

    walk(visit=visit)
    return weights, log


def _attempt(name: str, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except QbenchError as error:
        raise MethodError(f"layer {name}: {error}") from error
    except (
        RuntimeError,
        ValueError,
        ArithmeticError,
    ) as error:  # what torch raises from inside a method
        raise MethodError(f"layer {name}: {type(error).__name__}: {error}") from error


def _finite(name: str, weight: WeightFormat) -> WeightFormat:
    if not all(torch.isfinite(part).all() for part in weight.to_tensors().values()):
        raise MethodError(f"layer {name}: the quantized weight is not finite")
    return weight


def _tokens(calibration: Tensor | Sequence[str] | None, tokenizer: Any, method: Any) -> Tensor:
    if calibration is None:
        raise ConfigError(
            f"method {method.name!r} needs calibration: give token ids (samples, length), or texts"
        )
    if isinstance(calibration, Tensor):
        return calibration
    return windows(calibration, tokenizer, length=512, limit=64)
