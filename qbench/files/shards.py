"""Safetensors files of a folder: written shard by shard with their hashes, and read with every claim checked first.

The index, `model.safetensors.index.json`, is the one of the Hugging Face hub; its metadata also
carry the SHA-256 of each file, which `verify` checks.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from qbench.errors import StoreError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CARD = "README.md"  # people edit it: it is not hashed
SHARD_BYTES = 2_000_000_000
JSON_BYTES = 100_000_000
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")


@dataclass(frozen=True)
class Entry:
    """What a file's header says of one tensor."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class Shards:
    """The tensors of a folder by name; `entries` are known at once, data are read when asked for."""

    def __init__(self, folder: Path) -> None:
        """StoreError where an index, a name or a header is not what it should be."""
        self.folder, self.entries = folder, dict[str, Entry]()
        self._open: dict[Path, Any] = {}
        for file, expected in _files(folder).items():
            self._handle(file)
            found = dict(_headers(file))
            odd = sorted(found.keys() & self.entries.keys()) or sorted(
                (expected or found.keys()) ^ found.keys()
            )
            if odd:
                raise StoreError(
                    f"{file}: tensor {odd[0]!r} is missing, unexpected or there twice; {_AGAIN}"
                )
            self.entries |= found

    def tensor(self, name: str) -> Tensor:
        """Read one tensor. StoreError where there is none, or it cannot be read."""
        if name not in self.entries:
            raise StoreError(f"{self.folder}: there is no tensor {name!r}; {_AGAIN}")
        try:
            return self._handle(self.entries[name].file).get_tensor(name)
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise StoreError(
                f"{self.entries[name].file}: tensor {name!r} cannot be read: {error}; {_AGAIN}"
            ) from None

    def _handle(self, file: Path) -> Any:
        if file not in self._open:
            try:
                self._open[file] = safe_open(file, framework="pt")
            except (OSError, SafetensorError) as error:
                raise StoreError(f"{file} cannot be read: {error}; {_AGAIN}") from None
        return self._open[file]


def write_shards(folder: Path, tensors: Mapping[str, Tensor], limit: int = SHARD_BYTES) -> None:
    """Write tensors into files of at most `limit` bytes (a larger tensor has its own), one file in memory at a time.

    The index is written by `seal`, once all other files are there.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern="model{suffix}.safetensors", max_shard_size=limit
    )
    for file, names in split.filename_to_tensors.items():
        shard = {name: tensors[name].detach().cpu().contiguous() for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(0o644)  # it comes readable for its owner alone


def seal(folder: Path) -> None:
    """Write the index with the hashes of all files, and flush everything to the disk."""
    weight_map, total = dict[str, str](), 0
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in _headers(file):
            weight_map[name] = file.name
            total += entry.nbytes
    hashes = {
        file.name: sha256(file)
        for file in sorted(folder.iterdir())
        if file.name not in (INDEX, CARD)
    }
    index = {
        "metadata": {"total_size": total, "sha256": hashes},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    for path in (*folder.iterdir(), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def is_ours(folder: Path) -> bool:
    """Whether a folder may be replaced: it is not there, is empty, or its index states hashes, as `seal` writes."""
    if not folder.is_dir():
        return not folder.exists()
    if not any(folder.iterdir()):
        return True
    try:
        return "sha256" in read_json(folder / INDEX)["metadata"]
    except (StoreError, KeyError, TypeError):
        return False


def swap(new: Path, folder: Path) -> None:
    """Put the directory `new` in the place of `folder` in one step; what was there is then in `new`, if anything.

    Linux exchanges two names at once (renameat2, since 3.15); elsewhere the old one steps aside
    first.
    """
    if not folder.exists():
        new.rename(folder)
        return
    if not _exchange(new, folder):
        aside = new.with_name(f"{new.name}.old")
        folder.rename(aside)
        new.rename(folder)


def _exchange(one: Path, other: Path) -> bool:
    here, swap_names = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    call = (
        getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if sys.platform == "linux"
        else None
    )
    return (
        call is not None and call(here, os.fsencode(one), here, os.fsencode(other), swap_names) == 0
    )


def verify(folder: Path) -> dict[str, str | None]:
    """What is wrong with each file that the index has a hash of, None where nothing is.

    StoreError where there are no hashes to compare with.
    """
    index = read_json(folder / INDEX)
    hashes = (
        index.get("metadata", {}).get("sha256") if isinstance(index.get("metadata"), dict) else None
    )
    if not isinstance(hashes, dict) or not hashes:
        raise StoreError(
            f"{folder / INDEX} states no hashes; only folders that qbench has written can be verified"
        )
    present = {path.name: path for path in folder.iterdir() if path.is_file()}
    found: dict[str, str | None] = {name: "is missing" for name in hashes if name not in present}
    for name in sorted(hashes.keys() & present.keys()):
        found[name] = (
            None
            if sha256(present[name]) == hashes[name]
            else "differs from the hash that the index states"
        )
    return found | {
        name: "is not in the index" for name in present.keys() - hashes.keys() - {INDEX, CARD}
    }


def sha256(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. StoreError where the file is missing, too large, or anything else."""
    try:
        if path.stat().st_size > JSON_BYTES:
            raise ValueError(f"it is larger than {JSON_BYTES // 1_000_000} MB")
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, not an object")
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror}; give the folder of a saved model"
        ) from None
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read: {error}; {_AGAIN}") from None
    return found


_AGAIN = "copy or quantize again"


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """The files to read, with the names that the index expects in them. A file may lie nowhere but in the folder."""
    if not (folder / INDEX).is_file():
        return {_inside(folder, SINGLE): None}
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise StoreError(f"{folder / INDEX} has no weight_map; {_AGAIN}")
    expected = dict[Path, set[str] | None]()
    for tensor, name in weight_map.items():
        names = expected.setdefault(_inside(folder, name), set())
        assert names is not None
        names.add(tensor)
    return expected


def _inside(folder: Path, name: Any) -> Path:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise StoreError(
            f"{folder / INDEX} names the file {name!r}; only NAME.safetensors in the folder itself is read"
        )
    path, home = folder / name, folder.resolve()
    if home.parent.name == "snapshots":  # the hub's cache: links from snapshots/REVISION into blobs
        home = home.parent.parent
    if not path.resolve().is_relative_to(home):
        raise StoreError(
            f"{path} is a link out of its folder, to {path.resolve()}; replace it by the file itself"
        )
    return path


def _headers(path: Path) -> Iterator[tuple[str, Entry]]:
    """What the header says. The library has checked it, but takes a quarter of a millisecond a tensor to repeat it."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    for name, stated in header.items():
        if stated["dtype"] not in DTYPES:
            raise StoreError(
                f"{path}: tensor {name!r} has dtype {stated['dtype']}; read are {', '.join(DTYPES)}"
            )
        yield name, Entry(path, DTYPES[stated["dtype"]], tuple(stated["shape"]))
