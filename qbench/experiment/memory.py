"""The memory that a cell may take, and how a model that is larger is quantized and judged.

The blocks of such a model stay in their files, but for the one at work. Those of the quantized
model are written as they are finished. Hidden states that take more than a part of the memory go to
files, too. The result is the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qbench.calibration.spool import spooling
from qbench.checkpoint.block_files import BlockFiles, Writing, write_block_files
from qbench.checkpoint.folder import read_log
from qbench.checkpoint.paged import can_be_paged, numbers_in, open_paged
from qbench.environment import available_memory, return_large_blocks
from qbench.models.paging import is_paged, on_device
from qbench.models.source import ModelSource, local_folder, torch_dtype
from qbench.quantization import QuantizedModel, read_model

RESERVE = 1 << 29  # bytes for the libraries and for what is in work
ROOM = 1.25  # of a model's bytes that it takes whole, with its quantized weights beside it
STREAMS = 4  # one part in so many of the memory is for hidden states


@dataclass(frozen=True)
class Memory:
    """The memory that may be taken.

    limit: bytes, None for what the machine has left. folder: for files of hidden states.
    """

    limit: int | None
    folder: Path

    @property
    def room(self) -> int:
        """Bytes that may be taken now."""
        return available_memory() if self.limit is None else self.limit

    def read(self, source: ModelSource, dtype: str, device: str = "cpu") -> QuantizedModel:
        """As `read_model`; paged where the model is too large. device: where it computes."""
        if not self.is_too_large(source, dtype, device):
            return read_model(source, dtype, device)
        return_large_blocks()
        checkpoint = open_paged(source, dtype)
        on_device(checkpoint.model, device)
        folder = local_folder(source)
        log = read_log(folder) if folder is not None and checkpoint.weights else {}
        return QuantizedModel(*checkpoint, log)

    def is_too_large(self, source: ModelSource, dtype: str, device: str = "cpu") -> bool:
        """Whether a model of this dtype does not fit, and can be paged."""
        if not can_be_paged(source):
            return False
        room = self.room
        if device != "cpu":
            room = min(room, torch.cuda.mem_get_info(device)[0])
        return ROOM * torch_dtype(dtype).itemsize * numbers_in(source) + RESERVE > room

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """A context in which hidden states beyond their part of the memory go to files."""
        with spooling(self.folder, self.room // STREAMS):
            yield


def quantized_into(
    folder: Path,
    model: Any,
    work: Callable[[BlockFiles | None], QuantizedModel],
    writing: Writing = nullcontext,
) -> QuantizedModel:
    """Quantize a model, save it, and return it. A paged one is saved block by block.

    work: quantizes, and passes the files on to `quantize`. writing: makes a context in which
    results are written. Raises what `work` and `save` raise.
    """
    if not is_paged(model):
        quantized = work(None)
        with writing():
            quantized.save(folder)
        return quantized
    made: list[QuantizedModel] = []

    def fill(files: BlockFiles) -> None:
        quantized = work(files)
        files.finish(
            quantized.model,
            quantized.tokenizer,
            quantized.weights,
            quantized.manifest,
            quantized.log,
        )
        made.append(quantized)

    write_block_files(folder, fill, writing)
    return made[0]
