"""GGUF files as models, which transformers' own reader dequantizes: what is checked beside it.

That reader makes lists of all words of the vocabulary, one number at a time; believes every number
of the metadata; leaves out tensors and metadata that it does not know; and takes each rotary
embedding for a plain one. So the header is read here first (`qbench.files.gguf_header`): its sizes
are limited, and what the reader would leave out is put right, or the file is refused by that name.
"""

from __future__ import annotations

from collections import Counter
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import ModelError, StoreError
from qbench.models.source import ModelSource

if TYPE_CHECKING:
    from qbench.files.gguf_header import BlockTensor, Header

MOST_WORDS = 3_000_000  # contents of all arrays of a header; Gemma 3 has 800,000
LONGEST = 1_000_000  # characters of a string; chat templates have 20,000
HEADER_BYTES = 200_000_000
_COUNTS = ("block_count", "expert_count")  # of things that have tensors of their own
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def gguf_header(source: ModelSource) -> Header:
    """The header of a model that is a GGUF file.

    ModelError where the file is a part of a model, or is so large that reading it would not end;
    StoreError where it is damaged.
    """
    path = source.path
    header = _read(path)
    if header.metadata.get("split.count", 0) not in (0, 1):
        raise ModelError(
            f"{path} is one of {header.metadata['split.count']} files that make up a model, which "
            "transformers does not read; join them with `llama-gguf-split --merge`"
        )
    words = sum(header.arrays.values())
    sizes = {
        f"{words:,} words and numbers": words > MOST_WORDS,
        f"a text of {header.longest:,} characters": header.longest > LONGEST,
        f"{header.nbytes:,} bytes of metadata": header.nbytes > HEADER_BYTES,
    }
    for size, too_large in sizes.items():
        if too_large:
            raise ModelError(f"{path} has {size}, more than any model; copy it again")
    _require_plausible(path, header)
    return header


def quantized_as(source: ModelSource) -> str | None:
    """Such as `gguf Q4_K_M`, None where nothing is quantized.

    What the file states of itself counts where the type of most of its weights is that; else it is
    the types that are there.
    """
    matrices = [t for t in _read(source.path).tensors if t.in_blocks]
    if not matrices:
        return None
    weights: Counter[str] = Counter()
    for tensor in matrices:
        weights[tensor.type] += prod(tensor.shape)
    [(main, _), *_] = weights.most_common(1)
    stated = _stated_type(source.path)
    if stated is not None and (stated == main or stated.startswith(f"{main}_")):
        return f"gguf {stated}"
    return f"gguf {'+'.join(kind for kind, _ in weights.most_common())}"


def stored_dtype(header: Header) -> str | None:
    """The dtype of most of the weights, None where they are in blocks."""
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        if len(tensor.shape) > 1:
            sizes[tensor.type] += tensor.nbytes
    [(kind, _), *_] = sizes.most_common(1) or [("F32", 0)]
    return None if any(t.in_blocks for t in header.tensors) else _DTYPES.get(kind)


def bits_of_blocks(source: ModelSource) -> float:
    """Stored bits of the matrices that are in blocks, the embedding's not counted, over weights."""
    layers = [t for t in _read(source.path).tensors if t.in_blocks and "token_embd" not in t.name]
    weights = sum(prod(tensor.shape) for tensor in layers)
    return 8 * sum(tensor.nbytes for tensor in layers) / weights if weights else 0.0


def words_of(header: Header) -> int:
    """How many words and numbers transformers makes lists of, which takes 50 us each."""
    return sum(header.arrays.values())


def torch_shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in the order of torch, by name."""
    return {tensor.name: tuple(reversed(tensor.shape)) for tensor in header.tensors}


def read_float32(path: Path, tensor: BlockTensor) -> Any:
    """The numbers of a tensor of the type F32, a numpy array. ModelError where it has another."""
    import numpy as np

    if tensor.type != "F32":
        raise ModelError(f"{path}: {tensor.name} is {tensor.type}, not F32; copy the file again")
    return np.fromfile(path, dtype="<f4", count=prod(tensor.shape), offset=tensor.offset)


def _read(path: Path) -> Header:
    try:
        from qbench.files.gguf_header import read_header
    except ImportError as error:
        package = (error.name or "gguf").partition(".")[0]
        raise ModelError(
            f"{path} needs the package {package!r}, which is not installed; `pip install {package}`"
        ) from None
    return read_header(path)


def _require_plausible(path: Path, header: Header) -> None:
    """StoreError where a number of the metadata asks for more than the tensors can be.

    transformers makes a list of layers of it before it builds anything.
    """
    axes = [size for tensor in header.tensors for size in tensor.shape]
    most = max([len(header.tensors), *axes])
    for key, value in header.metadata.items():
        if not isinstance(value, int) or key.startswith(("general.", "tokenizer.")):
            continue
        limit = most if key.rpartition(".")[2] in _COUNTS else 2**31
        if not -(2**31) <= value <= limit:
            raise StoreError(
                f"{path}: {key}={value} is out of range; at most {limit} fits this file; "
                "copy it again"
            )


def _stated_type(path: Path) -> str | None:
    """What llama.cpp calls the type of the whole file, such as Q4_K_M."""
    from gguf.constants import LlamaFileType

    number = _read(path).metadata.get("general.file_type")
    for file_type in LlamaFileType:
        if file_type == number:
            return str(file_type.name.removeprefix("MOSTLY_"))
    return None
