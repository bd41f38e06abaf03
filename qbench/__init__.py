"""qbench: which quantization method, at how many real bits, is better, and is the difference real?"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

if TYPE_CHECKING:
    from qbench.contracts import LinearStats, Scheme
    from qbench.quantization import QuantizedModel, load, quantize
    from qbench.registry import get_method

__version__ = "0.1.0"
__all__ = ["LinearStats", "QuantizedModel", "Scheme", "get_method", "load", "quantize"]

_HOME = {
    "LinearStats": "contracts",
    "Scheme": "contracts",
    "get_method": "registry",
    "QuantizedModel": "quantization",
    "load": "quantization",
    "quantize": "quantization",
}


def __getattr__(name: str) -> Any:  # lazy, so that reports and `qbench --help` never import torch
    if name not in _HOME:
        raise AttributeError(f"module 'qbench' has no attribute {name!r}")
    return getattr(import_module(f"qbench.{_HOME[name]}"), name)


@when_imported("transformers.quantizers")
def _register(
    _: Any,
) -> None:  # so that `import qbench` does not import transformers, and yet from_pretrained knows us
    import_module("qbench.checkpoint.huggingface")
