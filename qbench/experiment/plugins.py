"""Plug-in files of a run: Python files define methods and kernels, YAML files define tasks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qbench.errors import ConfigError
from qbench.kernels.registry import plugin_files, register_module
from qbench.plugin_file import import_plugin_file
from qbench.registry import declared, register_methods
from qbench.tasks.registry import load_task_file


def load_plugins(paths: Iterable[Path]) -> None:
    """Register what every file defines; ConfigError naming the file that cannot be used."""
    for path in paths:
        if path.suffix in (".yaml", ".yml"):
            load_task_file(path)
        else:
            load_python(path)


def plugins_of(method: str, paths: Iterable[Path]) -> tuple[Path, ...]:
    """The files that a cell of a method needs: those of tasks, and the one that defines the method.

    So the file of one method cannot disturb the cells of others when it is imported.
    """
    file = declared(method).file
    return tuple(path for path in paths if path.suffix != ".py" or str(path) == file)


def kernels_of(paths: Iterable[Path]) -> tuple[Path, ...]:
    """The files among them, which have been loaded, that define kernels."""
    files = plugin_files()
    return tuple(path for path in paths if str(path.resolve()) in files)


def load_python(path: Path) -> tuple[list[str], list[str]]:
    """Register the methods and the kernels of a Python file; returns the names of both.

    ConfigError naming the file where it defines neither, or one that cannot be used.
    """
    module = import_plugin_file(path)
    methods = register_methods(module, path)
    kernels = register_module(module, str(path.resolve()))
    if not (methods or kernels):
        raise ConfigError(
            f"plug-in {str(path)!r} defines neither a method nor a kernel; "
            "`methods/rtn.py` and `kernels/dequantized.py` are models of both"
        )
    return methods, kernels
