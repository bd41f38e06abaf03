"""What a cell may take of memory, and how a model that is larger is quantized and judged.

Its blocks then stay in their files but for the one that is worked on, those of the quantized model
are written as they are finished, and hidden states beyond a part of the memory go to files, too.
What comes out is the same, bit for bit.
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
    """What may be taken.

    limit: bytes, None for what the machine has left. folder: on a disk, for hidden states.
    """

    limit: int | None
    folder: Path

    @property
    def room(self) -> int:
        """Bytes that may be taken now."""
        return available_memory() if self.limit is None else self.limit

    def read(self, source: ModelSource, dtype: str, device: str = "cpu") -> QuantizedModel:
        """`read_model`, paged where the model is too large. device: where it is to compute."""
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
        """Where hidden states beyond their part of the memory go to files."""
        with spooling(self.folder, self.room // STREAMS):
            yield


def quantized_into(
    folder: Path,
    model: Any,
    work: Callable[[BlockFiles | None], QuantizedModel],
    writing: Writing = nullcontext,
) -> QuantizedModel:
    """Quantize a model, save it, and return it; of a paged one each block is saved once it is done.

    work: quantizes, with the files that `quantize` is to be given. writing: makes a context in
    which results are written. Raises what `work` raises, and what `save` does.
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
