"""Safetensors files of a folder: written shard by shard, and read with every claim checked first.

The index, `model.safetensors.index.json`, is the one of the Hugging Face hub: `weight_map` names
the file of each tensor. Its metadata also carry the SHA-256 of each file, which `verify` checks.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from qbench.errors import StoreError
from qbench.files.atomic import what_prevents
from qbench.files.ordinary import contents_of, is_folder, ordinary_file, ordinary_text
from qbench.files.safetensors_file import write_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
CARD = "README.md"  # people edit it: it is not hashed
SHARD_BYTES = 2_000_000_000
DTYPE_NAMES = {  # of safetensors -> of torch
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
}
_FILE_NAME = re.compile(r"[\w-][\w.-]*\.safetensors")
_HALF = re.compile(r"\\u[dD][89a-fA-F]")  # an escape of half a character, which no file takes
_AGAIN = "copy or quantize again"
_ADAPTER = "adapter_config.json"  # of peft


@dataclass(frozen=True)
class Entry:
    """What a file's header says of one tensor: the file it lies in, its dtype and its shape.

    start: the place of its first byte in the file.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return prod(self.shape) * self.dtype.itemsize


class Shards:
    """The tensors of a folder by name.

    `entries` are known at once, from the headers; data are read when `tensor` is called.
    """

    def __init__(self, folder: Path, mapped: bool = True) -> None:
        """StoreError where an index, a name or a header is not what it should be.

        mapped: whether the files are mapped into memory, so that a tensor may be a view of its
        file, in pages that belong to this process once they are written to. Else no file stays
        open, and a tensor is a copy, which is all the memory that it takes.
        """
        self.mapped = mapped
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self._open: dict[Path, Any] = {}
        for file, expected in _files(folder).items():
            self._handle(file)  # checks the header; what is read below can be believed
            entries = dict(_headers(file))
            twice = entries.keys() & self.entries.keys()
            strays = set() if expected is None else expected ^ entries.keys()
            odd = sorted(twice) or sorted(strays)
            if odd:
                raise StoreError(
                    f"{file}: tensor {odd[0]!r} is missing, unexpected or there twice; {_AGAIN}"
                )
            self.entries |= entries

    def tensor(self, name: str) -> Tensor:
        """Read one tensor. StoreError where there is none, or it cannot be read."""
        if name not in self.entries:
            raise StoreError(f"{self.folder}: there is no tensor {name!r}; {_AGAIN}")
        entry = self.entries[name]
        file = entry.file
        try:
            return self._handle(file).get_tensor(name) if self.mapped else _copied(entry)
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise StoreError(f"{file}: tensor {name!r} cannot be read: {error}; {_AGAIN}") from None

    def _handle(self, file: Path) -> Any:
        if file in self._open:
            return self._open[file]
        # numpy's mapping is read-only, and takes no memory of this process.
        framework = "pt" if self.mapped else "numpy"
        try:
            handle = safe_open(file, framework=framework)
        except (OSError, SafetensorError, RuntimeError) as error:  # the last: no room to map it
            raise StoreError(f"{file} cannot be read: {error}; {_AGAIN}") from None
        if self.mapped:
            self._open[file] = handle
        return handle


def require_usual_names(folder: Path) -> None:
    """StoreError where a folder's weights are in a file that transformers does not look for.

    To be asked of models that are not quantized; of others older programs chose the name.
    """
    if not any(os.path.lexists(folder / name) for name in (SINGLE, INDEX)):
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        raise StoreError(
            f"{folder} holds {', '.join(names[:3]) or 'no safetensors'}, and neither {SINGLE} nor "
            f"{INDEX}; rename the file to {SINGLE}, or copy the index there"
        )


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
        for name, entry in _headers(file):
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
    return f"names no tensor of {unnamed[0]}; {_AGAIN}" if unnamed else None


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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a folder from outside.

    StoreError where the file is missing, no ordinary one in its folder, or anything else.
    """
    if not os.path.lexists(path):
        raise StoreError(
            f"{path} cannot be read, as it is missing; give the folder of a saved model"
        )
    text = ordinary_text(path, path.parent)
    try:
        content = json.loads(text)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not an object")
        if _HALF.search(text):  # most are halves of a whole character
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read: {error}; {_AGAIN}") from None
    return content


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """The files to read, each with the names of the tensors that the index expects in it.

    None stands for any names, where there is no index. A file may lie nowhere but in the folder.
    StoreError where transformers would read others.
    """
    _refuse_other_weights(folder)
    if not (folder / INDEX).is_file():
        names = [path.name for path in folder.glob("*.safetensors")]
        # older programs call their only file otherwise, such as gptq_model-4bit-128g.safetensors
        return {_inside(folder, names[0] if len(names) == 1 else SINGLE): None}
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise StoreError(f"{folder / INDEX} has no weight_map; {_AGAIN}")
    expected: dict[Path, set[str]] = {}
    for tensor, name in weight_map.items():
        expected.setdefault(_inside(folder, name), set()).add(tensor)
    others = sorted(file.name for file in expected if file.name != SINGLE)
    if others and os.path.lexists(folder / SINGLE):  # which transformers would prefer
        raise StoreError(
            f"{folder} holds two models, {SINGLE} and that of {INDEX} ({others[0]}), where one is "
            f"read: remove {SINGLE}, or else the index with the files that it names"
        )
    return dict(expected)


def _refuse_other_weights(folder: Path) -> None:
    """StoreError where a folder holds an adapter, or names a file that only some programs read."""
    if os.path.lexists(folder / _ADAPTER):
        raise StoreError(
            f"{folder} holds {_ADAPTER}, of weights that are added to a model; qbench reads whole "
            "models: merge them with peft's merge_and_unload and save that, or remove the adapter"
        )
    if not (folder / "config.json").is_file():
        return
    named = read_json(folder / "config.json").get("transformers_weights")
    if named is not None:
        raise StoreError(
            f"{folder / 'config.json'} states transformers_weights={named!r}, which only "
            f"transformers reads; remove it, and call the file {SINGLE}, or its index {INDEX}"
        )


def _inside(folder: Path, name: Any) -> Path:
    """The path of a file that the index names. StoreError where it leads out of the folder."""
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise StoreError(
            f"{folder / INDEX} names the file {name!r}; "
            "only NAME.safetensors in the folder itself is read"
        )
    return ordinary_file(folder / name, folder)


def _headers(path: Path) -> Iterator[tuple[str, Entry]]:
    """The tensors that a file's header names. StoreError where a dtype is not known.

    Read by ourselves, since the library, which has checked the header when it opened the file,
    takes a quarter of a millisecond for each tensor to repeat it.
    """
    import torch

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    for name, fields in header.items():
        code = fields["dtype"]
        if code not in DTYPE_NAMES:
            raise StoreError(
                f"{path}: tensor {name!r} has dtype {code}; known are {', '.join(DTYPE_NAMES)}"
            )
        dtype = getattr(torch, DTYPE_NAMES[code])
        start = 8 + length + fields["data_offsets"][0]
        yield name, Entry(path, dtype, tuple(fields["shape"]), start)


def _copied(entry: Entry) -> Tensor:
    """A tensor in memory of its own. OSError where the file has become shorter."""
    import torch

    data = torch.empty(entry.nbytes, dtype=torch.uint8)
    view = memoryview(data.numpy().data)
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.start)
        read = 0
        while read < entry.nbytes:  # a system call may give less than it is asked for
            more = file.readinto(view[read:])
            if not more:
                raise OSError(f"it ends after {read} of its {entry.nbytes} bytes")
            read += more
    return data.view(entry.dtype).view(entry.shape)
