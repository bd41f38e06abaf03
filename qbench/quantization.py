"""The public interface: `quantize` makes a `QuantizedModel`, its `save` writes it, `load` reads it.

Round-to-nearest needs no calibration:

    quantized = qbench.quantize("smollm2-135m", "rtn", qbench.Scheme(bits=4, group_size=64))
    quantized.bits_per_weight["total"]  # 4.32, measured from the stored tensors
    quantized.save("smollm2-rtn")
    model = qbench.load("smollm2-rtn").model  # a transformers model, packed
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qbench.acceptance import (
    calibration_tokens,
    require_decoder,
    require_device,
    require_settings,
)
from qbench.calibration.soundness import require_walkable
from qbench.calibration.walk import Progress, walk_blocks, walk_linears
from qbench.calibration.windows import calibration_facts
from qbench.checkpoint.block_files import BlockFiles
from qbench.checkpoint.folder import is_loadable, load_checkpoint, read_log
from qbench.checkpoint.write_folder import save_checkpoint
from qbench.contracts import (
    Scheme,
    WeightFormat,
    check_scheme,
    trains,
    verb_of,
)
from qbench.errors import ConfigError
from qbench.exchange.foreign import stated_in_words
from qbench.files.model_folder import quantization_settings
from qbench.files.shards import read_json
from qbench.formats import bits_per_weight
from qbench.models.blocks import (
    quantizable,
    read_weight,
    require_own_weights,
)
from qbench.models.evaluating import evaluating
from qbench.models.experts import unfuse_experts
from qbench.models.gguf_file import bits_of_blocks, quantized_as
from qbench.models.loading import load_model
from qbench.models.source import ModelSource, find_model, local_folder, torch_dtype
from qbench.registry import get_method, parameters
from qbench.sensitivity import allocated
from qbench.verbs import by_block, by_linear, by_weight, check_head, quantize_head
from qbench.weight_range import require_computable, require_finite


@dataclass
class QuantizedModel:
    """A quantized model, ready to run, with its quantized weights beside it.

    model: a transformers model whose linear layers hold dequantized weights, or are packed.
    tokenizer: its tokenizer, or None.
    weights: quantized weight by the full name of its layer.
    manifest: method, parameters and scheme, JSON-able; saved as `quantization_config`.
    log: by block, the errors of its layers, and the losses of a method that trains; JSON-able,
    saved beside the weights.
    """

    model: Any
    tokenizer: Any
    weights: dict[str, WeightFormat]
    manifest: dict[str, Any]
    log: dict[str, Any] = field(default_factory=dict)

    @property
    def bits_per_weight(self) -> dict[str, float]:
        """Bits per quantized weight, measured from the stored tensors: `total`, and by part."""
        return bits_per_weight(self.weights.values())

    def save(self, folder: str | Path) -> Path:
        """Write a Hugging Face folder with packed weights, whole or not at all; returns its path.

        StoreError where the disk refuses, or where `folder` holds what qbench has not written.
        """
        return save_checkpoint(
            Path(folder), self.model, self.tokenizer, self.weights, self.manifest, self.log
        )


def load(
    folder: str | Path, dtype: str = "auto", packed: bool = True, device: str = "cpu"
) -> QuantizedModel:
    """Read a folder of `save`, or of GPTQ, AWQ or compressed-tensors. No code in it is run.

    dtype: of what is not quantized, such as "bfloat16"; "auto" is what the folder states.
    packed: linear layers stay packed, and take as much memory as on the disk. False dequantizes
    them once, which is faster where no kernel serves them.
    device: where the model is put, and where weights are dequantized.

    StoreError where the folder is damaged, naming the tensor where one is missing or unexpected.
    ConfigError, before any work, where another argument cannot be.
    """
    if not isinstance(folder, str | PathLike):
        raise ConfigError(f"folder={folder!r} is no path; give the folder of a saved model")
    if dtype != "auto":
        torch_dtype(dtype)
    checkpoint = load_checkpoint(Path(folder), dtype, packed, require_device(device))
    return QuantizedModel(
        checkpoint.model,
        checkpoint.tokenizer,
        checkpoint.weights,
        checkpoint.manifest,
        read_log(Path(folder)),
    )


def read_model(source: ModelSource, dtype: str, device: str = "cpu") -> QuantizedModel:
    """Any model, dequantized in `dtype`.

    What `load` reads is dequantized on the device. A GGUF file is dequantized by transformers;
    then the manifest has its label and bits. An unquantized model is on the CPU, and the result has
    no quantized weights. Raises what `load` and `qbench.models.loading.load_model` raise.
    """
    folder = local_folder(source)
    if folder is None or not is_loadable(folder):
        model, tokenizer = load_model(source, dtype)
        manifest: dict[str, Any] = {}
        if source.gguf and quantized_as(source):  # its blocks are dequantized by transformers
            manifest = {"method": quantized_as(source), "bits": bits_of_blocks(source)}
        return QuantizedModel(model, tokenizer, {}, manifest)
    return load(folder, dtype, False, device)


def quantize(
    model: Any,
    method: Any,
    scheme: Scheme,
    calibration: Tensor | str | Sequence[str] | None = None,
    *,
    tokenizer: Any = None,
    device: str = "cpu",
    dtype: str = "float32",
    batch_size: int = 8,
    progress: Progress = lambda fraction, text: None,
    files: BlockFiles | None = None,
) -> QuantizedModel:
    """Quantize every linear layer inside the decoder's blocks.

    model: a name, hub id or folder; or a transformers model, which is changed in place. A model in
    training mode is calibrated without dropout, and left in that mode.
    method: a name (`qbench list methods`), or a method object.
    scheme: bits per code, group size, whether the grid is symmetric, rules for single layers, and
    the bits of the head, which is quantized last.
    calibration: token ids (int64 or int32, (samples, length)); or texts, from which `tokenizer`
    makes at most 64 windows of 512 tokens. It is needed by methods that look at the inputs of
    layers, and by a budget of bits.
    tokenizer: saved with the model; for a model given by name it is loaded.
    device: where the work is done, block by block.
    dtype: of the matrix products of the calibration walk; "bfloat16" is faster where the hardware
    computes in it. Weights and statistics are float32.
    batch_size: samples that go through the model together, unless the method declares its own.
    progress: called with the part that is done, 0..1, and a word.
    files: where the blocks of a paged model are written; the weights in the result have no data.

    Raises before any work: ConfigError where the scheme does not fit the method or a layer, where
    the model cannot take the calibration, where a setting is invalid, or where the model's class
    comes from its folder; ModelError where it is no decoder, where two layers share a weight, or
    where the calibration cannot go through it block by block.
    Raises MethodError, naming the layer, where the method fails.
    """
    if isinstance(method, str):
        method = get_method(method)
    if verb_of(method) == "worker_settings":
        raise ConfigError(
            f"method {method.name!r} runs in its package's own environment; "
            "`qbench run --methods` starts it there"
        )
    where = require_settings(scheme, batch_size, device)
    kind = torch_dtype(dtype)
    if isinstance(model, str):
        source = read_model(find_model(model), "float32")
        refuse_quantized(source, model)
        model, tokenizer = source.model, source.tokenizer
    refuse_own_code(model)
    unfuse_experts(model)  # before layers are looked for: stacked experts are not linear layers
    check_layers(model, method, scheme)

    asked = scheme
    manifest: dict[str, Any] = {}
    weights: dict[str, WeightFormat] = {}
    tokens = None
    looks = verb_of(method) != "quantize_weight"
    if looks or scheme.budget is not None:
        who = f"method {method.name!r}" if looks else f"a budget of {scheme.budget} bits"
        tokens = calibration_tokens(model, calibration, tokenizer, who)
        manifest["calibration"] = calibration_facts(tokens)
    settings: dict[str, Any] = {
        "tokens": tokens,
        "device": where,
        "progress": progress,
        # a method that trains says how large its steps are
        "batch_size": method.batch_size if trains(method) else batch_size,
        "dtype": kind,
    }
    with evaluating(model):
        if tokens is not None:
            require_walkable(model, tokens)
            scheme, allocation = allocated(model, method, asked, tokens, where, progress)
            manifest |= allocation
        if files is not None:
            files.take(model, weights)
        log = _by_verb(model, method, scheme, settings, weights)
        manifest |= quantize_head(model, method, scheme, weights)
    manifest |= facts_of(method, asked)
    return QuantizedModel(model, tokenizer, weights, manifest, log)


def _by_verb(
    model: Any,
    method: Any,
    scheme: Scheme,
    settings: dict[str, Any],
    weights: dict[str, WeightFormat],
) -> dict[str, Any]:
    """Quantize the layers of all blocks into `weights`, by the walk that the method's verb needs.

    settings: arguments of the walk, the calibration tokens among them. Returns the log, by block.
    """
    verb = verb_of(method)
    if verb == "quantize_weight":
        return by_weight(model, method, scheme, settings["device"], settings["progress"], weights)
    if verb == "quantize_linear":
        walk = partial(walk_linears, model, **settings)
        return by_linear(walk, method, scheme, weights)
    window = getattr(method, "window", 1)  # of `Reconstruction`
    walk = partial(walk_blocks, model, window=window, **settings)
    return by_block(walk, method, scheme, weights)


def stored_as(source: ModelSource) -> str | None:
    """How the author of a model quantized it, such as `gptq 4b g128`; None for an unquantized one.

    StoreError where its config.json is damaged, ModelError where qbench cannot read its format.
    """
    if source.gguf:
        return quantized_as(source)
    folder = local_folder(source)
    if folder is None or not is_loadable(folder):
        return None
    entry = quantization_settings(folder, read_json(folder / "config.json")) or {}
    method = entry.get("method", entry.get("quant_method"))
    foreign = entry if entry.get("quant_method") != "qbench" else entry.get("foreign")
    if isinstance(foreign, Mapping):
        return f"{method} {stated_in_words(foreign)}"
    scheme = entry.get("scheme", {})
    bits = scheme.get("budget") or scheme.get("bits")
    words = [str(method), stated_in_words({**scheme, "bits": bits})]
    if scheme.get("rules") or scheme.get("head_bits"):
        words.append("and exceptions")
    return " ".join(words)


def made_of(source: ModelSource) -> str | None:
    """The model from which a folder of qbench was quantized; None where it does not say so.

    Raises what `stored_as` raises.
    """
    folder = local_folder(source)
    if folder is None or not is_loadable(folder):
        return None
    entry = quantization_settings(folder, read_json(folder / "config.json")) or {}
    return entry.get("model")


def refuse_quantized(source: QuantizedModel, name: str) -> None:
    """ConfigError where a model that is to be quantized is quantized already. name: as typed."""
    if source.weights or "bits" in source.manifest:
        method = source.manifest.get("method", "another program")
        bits = source.bits_per_weight["total"] if source.weights else source.manifest["bits"]
        raise ConfigError(
            f"model {name!r} is quantized already, by {method} at {bits:.2f} bits per weight; "
            "give the unquantized model, or --requantize to round its rounded weights once more"
        )


def check_layers(model: nn.Module, method: Any, scheme: Scheme) -> None:
    """Check, before any work, that a model can be quantized.

    ConfigError where the scheme does not fit the method or a layer; ModelError where the model is
    no decoder, or where two layers share a weight; MethodError where weights are not finite, or are
    too large or too small to compute with.
    """
    require_decoder(model)
    check_scheme(method, scheme)
    require_own_weights(model)
    layers = quantizable(model)
    scheme.check_rules(layers)
    asked = scheme.of_layers(layers)
    for name, layer in layers.items():
        weight = read_weight(layer)
        if name in asked and not getattr(method, "fits_any_row", False):
            asked[name].group_length(weight.shape[1], name)
        require_computable(weight, name)
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") not in layers:  # norms, biases, the head
            require_finite(parameter.detach(), name)
    check_head(model, method, scheme)


def refuse_own_code(model: Any) -> None:
    """ConfigError for a model whose class comes from its folder, by --trust-remote-code.

    A quantized folder is read by transformers' own classes, so another model would be judged.
    """
    if type(model).__module__.startswith("transformers_modules"):
        raise ConfigError(
            f"the model is computed by code from its folder ({type(model).__name__}), and a "
            "quantized one would be read by transformers' own classes; only the unquantized model "
            "is judged by such code: quantize it without --trust-remote-code"
        )


def facts_of(method: Any, scheme: Scheme) -> dict[str, Any]:
    """The entries of `quantization_config` for a method and a scheme; JSON-able."""
    return {
        "method": method.name,
        "paper": method.paper,
        "params": parameters(method),
        "scheme": scheme.facts(),
    }
