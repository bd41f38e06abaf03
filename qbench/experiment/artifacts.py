"""Quantized models of a run: used only where every byte is as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qbench.errors import StoreError
from qbench.files.shards import read_json
from qbench.files.written_folder import verify
from qbench.records import Cell


def check_artifact(folder: Path, cell: Cell) -> None:
    """StoreError, saying what is wrong, unless a folder is the whole quantized model of a cell.

    Every file is compared with its hash in the folder's index, which takes less time than reading
    the model. The method and scheme that the folder states are compared with those of the cell.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise StoreError(f"{folder} is no folder")
    try:
        problems = verify(folder)
    except OSError as error:
        raise StoreError(f"{folder} cannot be read ({error.strerror})") from error
    for name, problem in problems.items():
        if problem is not None:
            raise StoreError(f"{folder / name} {problem}")
    entry = read_json(folder / "config.json").get("quantization_config")
    facts = entry if isinstance(entry, dict) else {}
    _check_facts(folder, facts, cell)


def _check_facts(folder: Path, facts: dict[str, Any], cell: Cell) -> None:
    """StoreError unless the manifest has the costs, and is that of this cell."""
    costs = facts.get("costs")
    for key in ("seconds", "peak_bytes"):
        value = costs.get(key) if isinstance(costs, dict) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise StoreError(f"{folder} does not say what it cost: costs.{key} is {value!r}")
    key = facts.get("artifact", cell.artifact)  # models of older versions do not say it
    if key != cell.artifact or facts.get("method") != cell.method:
        raise StoreError(f"{folder} holds the model {key!r} of method {facts.get('method')!r}")
