"""Shared libraries in C that the package's build leaves beside the modules that load them."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

# name: (type of the result, types of the arguments)
Functions = Mapping[str, tuple[Any, tuple[Any, ...]]]


def built(folder: Path, stems: Sequence[str]) -> Path | None:
    """The library of the first of these names that the build left in the folder, or None."""
    for stem in stems:
        for suffix in EXTENSION_SUFFIXES:
            path = folder / f"{stem}{suffix}"
            if path.exists():
                return path
    return None


def why_not(path: Path | None) -> str | None:
    """Why this library cannot be used in this process, or None."""
    if path is None:
        return "its C library was not built; install qbench again where a C compiler is"
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return f"its C library does not load ({error}); install qbench again"
    return None


def typed(path: Path, prefix: str, functions: Functions) -> Any:
    """The library, its functions with their types; in C their names begin with the prefix."""
    loaded = ctypes.CDLL(str(path))
    for name, (result, arguments) in functions.items():
        function = getattr(loaded, prefix + name)
        function.restype = result
        function.argtypes = arguments
    return loaded
