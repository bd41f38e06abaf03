"""Plug-in files of a run: Python files define methods, YAML files define tasks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qbench.registry import load_plugin
from qbench.tasks.registry import load_task_file


def load_plugins(paths: Iterable[Path]) -> None:
    """Register what every file defines; ConfigError naming the file that cannot be used."""
    for path in paths:
        if path.suffix in (".yaml", ".yml"):
            load_task_file(path)
        else:
            load_plugin(path)
