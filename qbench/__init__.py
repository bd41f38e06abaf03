"""qbench: which quantization method, at how many real bits, is better, and is it a difference?"""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qbench.contracts import LinearStats, Scheme
    from qbench.quantization import QuantizedModel, load, quantize
    from qbench.registry import get_method
    from qbench.scheme import LayerRule

__version__ = "0.1.0"
__all__ = [
    "LayerRule",
    "LinearStats",
    "QuantizedModel",
    "Scheme",
    "get_method",
    "load",
    "quantize",
]

_HOME = {
    "LayerRule": "scheme",
    "LinearStats": "contracts",
    "Scheme": "contracts",
    "get_method": "registry",
    "QuantizedModel": "quantization",
    "load": "quantization",
    "quantize": "quantization",
}
_ROOT = Path(__file__).resolve().parents[1]
_FOLDERS = ("kernels", "methods", "reports", "tasks")  # packages of qbench that stand in the root


def __getattr__(name: str) -> Any:  # lazy, so that reports and `qbench --help` never import torch
    if name not in _HOME:
        raise AttributeError(f"module 'qbench' has no attribute {name!r}")
    return getattr(import_module(f"qbench.{_HOME[name]}"), name)


def _end_quietly_meanwhile() -> None:
    """Have Ctrl-C end the command `qbench` without a traceback until it can say more.

    What follows takes as long to import as one waits before one changes one's mind.
    """
    program = sys.orig_argv[-len(sys.argv) :][:1]  # a file, or the word behind `-m`
    untouched = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if untouched and [Path(word).stem for word in program] == ["qbench"]:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))


def _leave_the_root() -> None:
    """Take the repository's root off `sys.path`, where Python started in it.

    Else its folders would be importable as `methods` beside `qbench.methods`, each class twice, and
    transformers would take `kernels` for the package of that name. An installed qbench has no such
    root.
    """
    if not all((_ROOT / folder / "__init__.py").is_file() for folder in _FOLDERS):
        return
    sys.path[:] = [entry for entry in sys.path if not _is_the_root(entry)]
    for folder in _FOLDERS:
        origin = getattr(getattr(sys.modules.get(folder), "__spec__", None), "origin", None)
        if origin is not None and Path(origin).resolve().parent == _ROOT / folder:
            del sys.modules[folder]  # imported before us, by its guard as an empty package


def _is_the_root(entry: str) -> bool:
    try:
        return os.path.samefile(entry or os.curdir, _ROOT)  # "" is the working directory
    except OSError:
        return False


def _be_known_to_transformers() -> None:
    """So that `import qbench` does not import transformers, and yet from_pretrained knows us."""
    from wrapt import when_imported

    register = when_imported("transformers.quantizers")
    register(lambda _: import_module("qbench.checkpoint.huggingface"))


_end_quietly_meanwhile()
_leave_the_root()
_be_known_to_transformers()
