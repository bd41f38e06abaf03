"""A cell of another package's method: its worker quantizes, and its result is read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from qbench.calibration.windows import calibration_facts
from qbench.checkpoint.write_folder import unquantized_tensors
from qbench.contracts import Scheme
from qbench.errors import ConfigError, MethodError, ModelError
from qbench.exchange.gguf_model import export_model_gguf
from qbench.experiment.foreign_results import read_result
from qbench.external.contract import External, Package
from qbench.external.environments import State, state
from qbench.external.work import work
from qbench.models.source import ModelSource, local_folder
from qbench.models.tokenizers import keep_word_on_bos, settings_file
from qbench.quantization import QuantizedModel, facts_of, read_model
from qbench.registry import declared

SCRATCH = "handed-over"  # in a folder that `qbench gc` knows as a leftover of a killed process


def require_environment(method: str) -> None:
    """ConfigError where a method cannot be run here, or has no environment, with what to do.

    Where installing the environment has failed, the cell is run all the same, and fails with the
    reason.
    """
    cls = _class(method)
    unavailable = cls.unavailable or cls.package.unavailable
    if unavailable is not None:
        raise ConfigError(f"{method} cannot be run here: {unavailable}")
    present = state(cls.package)
    if present.status == "missing":
        raise ConfigError(f"{method} has no environment here: {present.reason}")


def quantize_elsewhere(
    method: External,
    name: str,
    scheme: Scheme,
    source: ModelSource,
    tokens: Tensor | None,
    place: Path,
    *,
    device: str,
    threads: int,
    waiting: Callable[[], None],
) -> QuantizedModel:
    """The model as another package has quantized it, read from the checkpoint that it wrote.

    name: of the method. tokens: (samples, length) int64. place: a folder on whose disk there is
    room for the checkpoint, which is removed once it is read. waiting: called now and then.

    MethodError where the package's environment cannot be used, or the package or its checkpoint
    fails; ModelError for a model that is no folder.
    """
    package = _class(name).package
    present = _installed(package)
    settings = method.worker_settings(scheme)
    with tempfile.TemporaryDirectory(dir=place, prefix=f".{SCRATCH}-") as scratch:
        handed = Path(scratch) / SCRATCH
        handed.mkdir()
        written = work(
            package,
            settings,
            _worker_input(method, source, handed),
            tokens,
            handed,
            device=device,
            threads=threads,
            waiting=waiting,
        )
        quantized = read_result(
            package.name, written, scheme.bits, lambda: read_model(source, "float32")
        )
    if quantized.tokenizer is not None:  # else the cell says so
        keep_word_on_bos(quantized.tokenizer, settings_file(source))
    facts: dict[str, Any] = {
        "written": quantized.manifest["written"] | _provenance(present),
        "costs": {"seconds": written.result.seconds, "peak_bytes": written.result.peak_bytes},
    }
    if tokens is not None:
        facts["calibration"] = calibration_facts(tokens)
    quantized.manifest = facts_of(method, scheme) | facts
    return quantized


def as_written(coverage: dict[str, Any], quantized: QuantizedModel) -> dict[str, Any]:
    """The coverage of a quantized model; for another package's model, by its own files.

    Weights that were read dequantized count as quantized, with the bits of the codes in the files.
    """
    written = quantized.manifest.get("written")
    if written is None:
        return coverage
    facts = coverage | {"bytes": written["bytes"]}
    codes = written.get("code_bits")
    if written["read"] in ("dequantized", "gguf"):
        left = [name for name in coverage["left"] if name not in quantized.weights]
        facts |= {"left": left, "quantized": coverage["blocks"] - len(left)}
        if codes is not None:
            facts["bits"] = {f"{round(codes, 2):g}": len(quantized.weights)}
    return facts


def _worker_input(method: External, source: ModelSource, place: Path) -> Path:
    """What the worker reads as the model: its folder, or a GGUF file that is made of it here."""
    if method.reads == "gguf":
        original = read_model(source, "float32")
        tensors = {
            name: tensor.float() for name, tensor in unquantized_tensors(original.model, {}).items()
        }
        path = place / "model.gguf"
        config = original.model.config
        return export_model_gguf(config, original.tokenizer, {}, tensors.items(), path)
    folder = local_folder(source)
    if folder is None:
        raise ModelError(
            f"{method.package.name} reads a folder with config.json and safetensors, and model "
            f"{source.name!r} is none; give such a folder"
        )
    return folder


def _class(method: str) -> type[External]:
    return cast("type[External]", declared(method).load())


def _installed(package: Package) -> State:
    """MethodError with the reason where its environment cannot be used."""
    present = state(package)
    if present.status != "installed":
        raise MethodError(f"the environment of {package.name} cannot be used: {present.reason}")
    return present


def _provenance(present: State) -> dict[str, Any]:
    """What is installed in a package's environment; JSON-able."""
    installed = present.installed
    assert installed is not None
    return {
        "package": present.package.name,
        "python": installed.python,
        "packages": installed.packages,
    }
