"""From the files of a worker to a quantized model, exactly where its codes can be read.

The package's checkpoint is read as a folder by `qbench.exchange`, or as a GGUF file. Where neither
is possible, the worker took the codes, or else the weights, out of the package's own layers. The
result is compared with the package's own dequantized weights, where the worker wrote these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from qbench.checkpoint.folder import is_loadable
from qbench.contracts import WeightFormat
from qbench.errors import MethodError, QbenchError
from qbench.external.work import Written
from qbench.formats import Dense, Uniform
from qbench.inspection.report import inspect
from qbench.models.blocks import quantizable, read_weight, write_weight
from qbench.models.loading import load_model
from qbench.models.source import find_model
from qbench.quantization import QuantizedModel, load

# Packages multiply in half precision: what they dequantize is off by this part of the largest
# weight of a group, and a wrong code by more, up to 7 bits.
ROUNDING = 2.0**-8
Weights = dict[str, WeightFormat]


def read_result(
    package: str, written: Written, bits: int, original: Callable[[], QuantizedModel]
) -> QuantizedModel:
    """The quantized model in a worker's output folder, with its weights dequantized.

    bits: those that were asked for. original: loads the unquantized model, in float32. The entry
    `written` of the manifest says how the model was read, the bits per weight and bytes of the
    package's own files, and what the package was asked for. MethodError where files are damaged or
    contradict each other.
    """
    dequantized = _tensors(package, written.dequantized)
    try:
        how, model = _read(package, written, bits, dequantized, original)
        measured = inspect(written.checkpoint)
    except MethodError:
        raise
    except QbenchError as error:
        raise MethodError(f"the checkpoint of {package} cannot be read: {error}") from error
    worst = _compare(package, model.weights, dequantized)
    facts: dict[str, Any] = {
        "read": how,
        "bits_per_weight": dict(measured.bits_per_weight),
        "code_bits": measured.code_bits,
        "bytes": _bytes(written.checkpoint),
        "settings": written.result.settings,
    }
    if worst is not None:
        facts["largest_difference"] = worst
    model.manifest["written"] = facts
    return model


def _read(
    package: str,
    written: Written,
    bits: int,
    dequantized: Mapping[str, Tensor],
    original: Callable[[], QuantizedModel],
) -> tuple[str, QuantizedModel]:
    """How the model was read, and the model; its weights are all that was quantized."""
    if written.checkpoint.is_file():
        return "gguf", _gguf(written.checkpoint)
    if is_loadable(written.checkpoint) and written.codes is None:
        return "checkpoint", load(written.checkpoint, "float32", packed=False)
    model = original()
    if written.codes is not None:
        weights = _uniform(package, _tensors(package, written.codes), bits)
        how = "codes"
    elif dequantized:
        weights = {
            name.removesuffix(".weight"): Dense(weight) for name, weight in dequantized.items()
        }
        how = "dequantized"
    else:
        raise MethodError(
            f"{package} wrote {written.checkpoint.name}/, which is in no layout that is read here, "
            "and its worker no codes.safetensors or dequantized.safetensors"
        )
    _put(package, model, weights)
    return how, QuantizedModel(model.model, model.tokenizer, weights, {})


def _gguf(file: Path) -> QuantizedModel:
    """A GGUF file, whose blocks transformers dequantizes; embeddings may be quantized, too."""
    model, tokenizer = load_model(find_model(str(file)), "float32")
    weights: Weights = {}
    for name, layer in quantizable(model).items():
        weights[name] = Dense(read_weight(layer).clone())
    return QuantizedModel(model, tokenizer, weights, {})


def _uniform(package: str, parts: Mapping[str, Tensor], bits: int) -> Weights:
    """Weights of the codes that a worker has taken out of the package's layers."""
    weights: Weights = {}
    for key in parts:
        name, _, part = key.rpartition(".")
        if part != "codes":
            continue
        codes, scale = parts[key], parts.get(f"{name}.scale")
        zero = parts.get(f"{name}.zero_point")
        if scale is None or codes.ndim != 2 or codes.dtype != torch.uint8:
            raise MethodError(
                f"{package}: layer {name} has codes {codes.dtype} {tuple(codes.shape)} and "
                f"{'a' if scale is not None else 'no'} scale; expected uint8 (out, in) and a scale"
            )
        if int(codes.max()) >= 2**bits:
            raise MethodError(
                f"{package}: layer {name} has the code {int(codes.max())}, which {bits} bits "
                "do not hold"
            )
        weights[name] = Uniform.from_codes(codes, _stored(scale), _real(zero), bits)
    return weights


def _stored(numbers: Tensor) -> Tensor:
    """In a dtype that the format has: bfloat16 is widened, which is exact."""
    return numbers.float() if numbers.dtype == torch.bfloat16 else numbers


def _real(zero: Tensor | None) -> Tensor | None:
    return None if zero is None else _stored(zero)


def _put(package: str, model: QuantizedModel, weights: Weights) -> None:
    """Write dequantized weights into the model; MethodError where they do not fit its layers."""
    layers = quantizable(model.model)
    for name, weight in weights.items():
        layer = layers.get(name)
        shape = None if layer is None else tuple(read_weight(layer).shape)
        if shape != tuple(weight.shape):
            raise MethodError(
                f"{package} gives layer {name} a weight of shape {tuple(weight.shape)}; "
                f"the model has {'no such layer' if shape is None else f'the shape {shape}'}"
            )
        write_weight(layer, weight.dequantize())
    if not weights:
        raise MethodError(f"{package} quantized no layer")


def _compare(package: str, weights: Weights, dequantized: Mapping[str, Tensor]) -> float | None:
    """The largest difference from the package's own weights, in parts of a group's largest weight.

    None where it gives none. MethodError where one is beyond the rounding of half precision.
    """
    worst: float | None = None
    for key, expected in dequantized.items():
        name = key.removesuffix(".weight")
        if name not in weights:
            raise MethodError(
                f"{package} dequantizes layer {name}, which its checkpoint does not hold quantized"
            )
        weight = weights[name]
        if tuple(weight.shape) != tuple(expected.shape):
            raise MethodError(
                f"{package}: layer {name} is {tuple(weight.shape)} as read from its checkpoint, "
                f"and {tuple(expected.shape)} as it dequantizes it"
            )
        group = getattr(weight, "group_size", weight.shape[1])
        read = weight.dequantize().unflatten(1, (-1, group))
        differences = (read - expected.float().unflatten(1, (-1, group))).abs()
        largest = read.abs().amax(2, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        difference = float((differences / largest).max())
        if not difference <= ROUNDING:  # a NaN, too
            raise MethodError(
                f"{package}: the weight of layer {name} as read from its checkpoint differs from "
                f"its own by {difference:.2g} of a group's largest weight; {ROUNDING:.2g} is "
                "rounding, so its layout is not the one that is known"
            )
        worst = max(difference, worst or 0.0)
    return worst


def _tensors(package: str, path: Path | None) -> dict[str, Tensor]:
    if path is None:
        return {}
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise MethodError(f"{package}: {path.name} cannot be read: {error}") from None


def _bytes(path: Path) -> int:
    """Of the weights' files of a checkpoint."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*.safetensors"))
