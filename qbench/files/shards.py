"""Safetensors files of a folder, read with every claim checked first.

The index, `model.safetensors.index.json`, is the one of the Hugging Face hub: `weight_map` names
the file of each tensor.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from qbench.errors import StoreError
from qbench.files.ordinary import ordinary_file, ordinary_text

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
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
AGAIN = "copy or quantize again"
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
            entries = dict(headers_of(file))
            twice = entries.keys() & self.entries.keys()
            strays = set() if expected is None else expected ^ entries.keys()
            odd = sorted(twice) or sorted(strays)
            if odd:
                raise StoreError(
                    f"{file}: tensor {odd[0]!r} is missing, unexpected or there twice; {AGAIN}"
                )
            self.entries |= entries

    def tensor(self, name: str) -> Tensor:
        """Read one tensor. StoreError where there is none, or it cannot be read."""
        if name not in self.entries:
            raise StoreError(f"{self.folder}: there is no tensor {name!r}; {AGAIN}")
        entry = self.entries[name]
        file = entry.file
        try:
            return self._handle(file).get_tensor(name) if self.mapped else _copied(entry)
        except (OSError, SafetensorError, RuntimeError, ValueError) as error:
            raise StoreError(f"{file}: tensor {name!r} cannot be read: {error}; {AGAIN}") from None

    def _handle(self, file: Path) -> Any:
        if file in self._open:
            return self._open[file]
        # numpy's mapping is read-only, and takes no memory of this process.
        framework = "pt" if self.mapped else "numpy"
        try:
            handle = safe_open(file, framework=framework)
        except (OSError, SafetensorError, RuntimeError) as error:  # the last: no room to map it
            raise StoreError(f"{file} cannot be read: {error}; {AGAIN}") from None
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
        raise StoreError(f"{path} cannot be read: {error}; {AGAIN}") from None
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
        raise StoreError(f"{folder / INDEX} has no weight_map; {AGAIN}")
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


def headers_of(path: Path) -> Iterator[tuple[str, Entry]]:
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
