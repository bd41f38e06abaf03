"""Hidden states that do not fit into memory are kept in files, which are mapped.

A mapped tensor is used like any other. The system keeps as much of it in memory as there is room.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from weakref import finalize

import torch
from torch import Tensor

from qbench.errors import StoreError


@dataclass
class Spool:
    """The place of tensors that do not fit into memory.

    folder: of the files; these have no name, and vanish with their tensors. room: bytes of tensors
    that may be in memory. held: bytes that are, at present. mapped: bytes that went to files so
    far.
    """

    folder: Path
    room: int
    held: int = 0
    mapped: int = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor itself; or where memory has no room for it, its values in a file.

        StoreError where the disk has no room either.
        """
        if self.held + tensor.nbytes <= self.room:
            self.held += tensor.nbytes
            finalize(tensor, self._gone, tensor.nbytes)
            return tensor
        self.mapped += tensor.nbytes
        copy = self._file(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
        return copy.copy_(tensor)

    def _file(self, size: int) -> Tensor:
        """(size,) uint8: a mapped file. The mapping outlives its name."""
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix="qbench-stream-") as file:
                if hasattr(os, "posix_fallocate"):  # else a full disk would end the process
                    os.posix_fallocate(file.fileno(), 0, size)
                return torch.from_file(file.name, True, size, dtype=torch.uint8)
        except OSError as error:
            raise StoreError(
                f"{size / 1e9:.1f} GB of hidden states cannot be written into {self.folder} "
                f"({error.strerror or error}); free space, or give more memory"
            ) from None

    def _gone(self, size: int) -> None:
        self.held -= size


_SPOOL: ContextVar[Spool | None] = ContextVar("qbench_spool", default=None)


@contextmanager
def spooling(folder: Path, room: int) -> Iterator[Spool]:
    """A context in which `keep` holds `room` bytes in memory, and puts the rest into files."""
    spool = Spool(folder, room)
    token = _SPOOL.set(spool)
    try:
        yield spool
    finally:
        _SPOOL.reset(token)


def is_full() -> bool:
    """Whether hidden states have gone to files, so that there is no room for much beside them."""
    spool = _SPOOL.get()
    return spool is not None and spool.mapped > 0


def keep(tensor: Tensor) -> Tensor:
    """A tensor that will be needed later: itself, or its values in a file, under `spooling`.

    On a GPU it stays there.
    """
    spool = _SPOOL.get()
    if spool is None or tensor.device.type != "cpu":
        return tensor
    return spool.keep(tensor)
