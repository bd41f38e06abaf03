"""What may have happened to the folder of a quantized model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qbench.files.shards import INDEX, SINGLE


def flip(file: Path, place: float) -> None:
    """Change one byte of a file, at a part of its length."""
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


def cut(file: Path) -> None:
    """Leave half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change quantization_config."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))


def replace_by_another(folder: Path) -> None:
    """Put a whole model there, but that of another cell."""
    other = next(path for path in sorted(folder.parent.iterdir()) if path != folder)
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def to_a_file(folder: Path) -> None:
    """Put a file in the place of the folder."""
    shutil.rmtree(folder)
    folder.write_text("no folder")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "the weights are missing": lambda folder: (folder / SINGLE).unlink(),
    "the weights are cut": lambda folder: cut(folder / SINGLE),
    "a byte of the weights": lambda folder: flip(folder / SINGLE, 0.9),
    "a byte of the header": lambda folder: flip(folder / SINGLE, 0.01),
    "the index is missing": lambda folder: (folder / INDEX).unlink(),
    "the index is garbage": lambda folder: (folder / INDEX).write_bytes(b"\x00\xff{"),
    "the config is missing": lambda folder: (folder / "config.json").unlink(),
    "the config is garbage": lambda folder: (folder / "config.json").write_text("garbage"),
    "the costs are missing": lambda folder: change_config(folder, lambda e: e.pop("costs")),
    "the tokenizer is garbage": lambda folder: (folder / "tokenizer.json").write_text("[]"),
    "the tokenizer is missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "a file was added": lambda folder: shutil.copy(folder / SINGLE, folder / "x.safetensors"),
    "the folder is empty": lambda folder: [file.unlink() for file in folder.iterdir()],
    "a file in its place": to_a_file,
    "another model in its place": replace_by_another,
}
