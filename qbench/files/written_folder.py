"""A folder of safetensors that qbench writes: its shards, and an index with hashes.

The metadata of the index also carry the SHA-256 of each file, which `verify` checks, and by which a
folder of ours is known.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import StoreError
from qbench.files.atomic import what_prevents
from qbench.files.ordinary import contents_of, is_folder, ordinary_file
from qbench.files.safetensors_file import write_tensors
from qbench.files.shards import AGAIN, INDEX, Shards, headers_of, read_json

if TYPE_CHECKING:
    from torch import Tensor

CARD = "README.md"  # people edit it: it is not hashed
SHARD_BYTES = 2_000_000_000


def write_shards(
    folder: Path, tensors: Mapping[str, Tensor], limit: int = SHARD_BYTES
) -> dict[str, str]:
    """Write tensors into files of at most `limit` bytes; the SHA-256 of each file by its name.

    A tensor that is larger has a file of its own. One tensor at a time is in the CPU's memory. The
    index is left to `write_index`, once all other files are there. OSError where the disk refuses.
    """
    from huggingface_hub import split_torch_state_dict_into_shards

    split = split_torch_state_dict_into_shards(
        dict(tensors), filename_pattern="model{suffix}.safetensors", max_shard_size=limit
    )
    hashes = {}
    for file, names in split.filename_to_tensors.items():
        hashes[file] = write_tensors(folder / file, {name: tensors[name] for name in names})
    return hashes


def write_index(folder: Path, known: Mapping[str, str]) -> None:
    """Write the index with the hashes of all files, once they are there.

    known: hashes that need not be computed, by the files' names. The folder is one that nobody
    reads yet: `qbench.files.atomic.write_whole_folder` makes it.
    """
    weight_map: dict[str, str] = {}
    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        for name, entry in headers_of(file):
            weight_map[name] = file.name
            total += entry.nbytes
    hashes: dict[str, str] = {}
    for name, file in _hashed(folder).items():
        hashes[name] = known.get(name) or sha256(file)
    index = {
        "metadata": {"total_size": total, "sha256": hashes},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def may_be_replaced(folder: Path) -> bool:
    """Whether a folder may be replaced without losing what somebody else has written.

    It may where it is not there, is empty, or has an index with hashes, which only we write.
    """
    if not is_folder(folder):
        return not os.path.lexists(folder)
    if not any(folder.iterdir()):
        return True
    try:
        return "sha256" in read_json(folder / INDEX)["metadata"]
    except (StoreError, KeyError, TypeError):
        return False


def require_writable(folder: Path) -> None:
    """StoreError, before any work, where a model cannot be written to this folder.

    It can where nothing is, or what may be replaced, and files can be made beside it.
    """
    if not may_be_replaced(folder):
        raise StoreError(
            f"{folder} is there and was not written by qbench, or is damaged; "
            "choose another folder, or remove it first"
        )
    problem = what_prevents(folder)
    if problem is not None:
        raise StoreError(f"{folder} cannot be written: {problem}; choose another place")


def verify(folder: Path) -> dict[str, str | None]:
    """What is wrong with each file of a folder, None where nothing is.

    Compared are the SHA-256 of the files, those in folders inside too, with those in the index; and
    where they agree, the tensors that the index names with those of the files. StoreError where it
    has no hashes.
    """
    metadata = read_json(folder / INDEX).get("metadata")
    hashes = metadata.get("sha256") if isinstance(metadata, dict) else None
    if not isinstance(hashes, dict) or not hashes:
        raise StoreError(
            f"{folder / INDEX} states no hashes; "
            "only folders that qbench has written can be verified"
        )
    present = _hashed(folder)
    problems: dict[str, str | None] = dict.fromkeys(hashes.keys() - present.keys(), "is missing")
    for name in sorted(hashes.keys() & present.keys()):
        problems[name] = _problem(present[name], hashes[name], folder)
    # a file that was added may be a shard, which would be read
    problems |= dict.fromkeys(present.keys() - hashes.keys(), "is not in the index")
    wrong = None if any(problems.values()) else _problem_of_index(folder)
    return problems if wrong is None else problems | {INDEX: wrong}


def _problem_of_index(folder: Path) -> str | None:
    """Why the tensors that the index names are not those of the files; None where they are."""
    try:
        named = {entry.file.name for entry in Shards(folder, mapped=False).entries.values()}
    except StoreError as error:
        return f"does not fit the files: {error}"
    unnamed = sorted(path.name for path in folder.glob("*.safetensors") if path.name not in named)
    return f"names no tensor of {unnamed[0]}; {AGAIN}" if unnamed else None


def _hashed(folder: Path) -> dict[str, Path]:
    """What the index states the hashes of, by name, such as additional_chat_templates/x.jinja."""
    hashed = {}
    for path in contents_of(folder):
        name = path.relative_to(folder).as_posix()
        if name not in (INDEX, CARD) and not (path.is_dir() and not path.is_symlink()):
            hashed[name] = path
    return hashed


def _problem(path: Path, stated: Any, folder: Path) -> str | None:
    try:
        ordinary_file(path, folder)
    except StoreError as error:
        return str(error)
    return None if sha256(path) == stated else "differs from the hash that the index states"


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
