"""The tokens that calibrate, in a file that the cells of a run map into memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qbench.files.atomic import write_whole


def shared_tokens(path: Path, draw: Callable[[], Tensor]) -> Tensor:
    """(samples, length) int64, mapped from a file; where it is not there, `draw` makes them.

    The caller keeps others from making the same file. StoreError where it cannot be written.
    """
    if not _is_array(path):
        tokens = draw().numpy()
        write_whole(path, lambda part: _save(tokens, part))
    # Copied where it is written to, so that torch has what it may write to.
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _is_array(path: Path) -> bool:
    try:
        np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return True


def _save(array: np.ndarray[Any, Any], path: Path) -> None:
    with path.open("wb") as file:  # np.save would add an ending to the name
        np.save(file, array)
