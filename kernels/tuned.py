"""Files of launches that were found to be the fastest: one for each GPU model and kind of kernel.

`<folder>/<name of the GPU, spaces as underscores>.json`:

    {"gpu": "NVIDIA H200", "triton": "3.6.0", "configs": {
        "m16 n4096 k4096 binary b3 g128 bfloat16": {"kind": "skinny", "block_n": 64, "split": 8}}}

with what the kernel needs to launch; m is the bucket of the rows of x.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from qbench.errors import ConfigError
from qbench.files.atomic import write_text

BUCKETS = (1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

T = TypeVar("T")


def key(
    m: int, shape: tuple[int, int], kind: str, bits: int, group_size: int, dtype: torch.dtype
) -> str:
    """The name of a product: m rows of x in this dtype, rounded up to a bucket.

    shape: (out, in). kind: binary or uniform.
    """
    n, k = shape
    bucket = min([size for size in BUCKETS if m <= size], default=BUCKETS[-1])
    name = str(dtype).removeprefix("torch.")
    return f"m{bucket} n{n} k{k} {kind} b{bits} g{group_size} {name}"


def key_of(m: int, planes: Any, dtype: torch.dtype) -> str:
    """The name of the product of a weight with m rows of x in this dtype.

    planes: the weight as a kernel reads it, with its shape, bits, group_size, and whether it is
    uniform.
    """
    kind = "uniform" if planes.uniform else "binary"
    return key(m, planes.shape, kind, planes.bits, planes.group_size, dtype)


class TunedFiles(Generic[T]):
    """The files of one kind of kernel, each read once.

    folder: where they lie. parse: makes a launch of its fields.
    """

    def __init__(self, folder: Path, parse: Callable[[dict[str, Any]], T]) -> None:
        self.folder = folder
        self.parse = parse
        self._known: dict[str, dict[str, T]] = {}

    def path(self, gpu: str) -> Path:
        """Where the launches of a GPU model are kept; gpu: its name, as torch.cuda gives it."""
        return self.folder / f"{gpu.replace(' ', '_')}.json"

    def of(self, gpu: str) -> dict[str, T]:
        """The launches of a GPU model by `key`; none where it has no file.

        ConfigError where the file is damaged.
        """
        if gpu not in self._known:
            self._known[gpu] = read(self.path(gpu), self.parse)
        return self._known[gpu]

    def forget(self) -> None:
        """Read the files anew where they are next asked for."""
        self._known.clear()


def read(path: Path, parse: Callable[[dict[str, Any]], T]) -> dict[str, T]:
    """The launches of a file, each as `parse` makes it of its fields; none where there is no file.

    ConfigError where it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text())["configs"]
        return {name: parse(fields) for name, fields in stored.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not a file of tuned configurations ({error}); tune again or delete it"
        ) from None


def write(path: Path, facts: Mapping[str, str], configs: Mapping[str, dict[str, Any]]) -> None:
    """Put launches into a file; those of other products that are in it stay.

    facts: the GPU's name and the version of what compiles.
    """
    entries = {**read(path, dict), **configs}
    head = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items()]
    body = [f"  {json.dumps(name)}: {json.dumps(fields)}" for name, fields in entries.items()]
    lines = ",\n".join([*head, ' "configs": {\n' + ",\n".join(body) + "\n }"])
    write_text(path, "{\n" + lines + "\n}\n")
