"""Files that are replaced whole or not at all: written beside their place, flushed to the disk, and renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from qbench.errors import StoreError


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` make a file at the path that it is called with, and put that file at `path`.

    A reader sees the old file or the new one, never a part. Whatever `write` raises, nothing stays
    behind. StoreError where the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
            part = Path(scratch) / path.name
            write(part)
            with part.open("rb") as handle:
                os.fsync(handle.fileno())
            os.replace(part, path)
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(
            f"{path} cannot be written ({reason}); free space, or choose a place that you can write to"
        ) from error
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    """Put `data` at `path`, whole or not at all; StoreError where the disk refuses."""
    return write_whole(path, lambda part: part.write_bytes(data))


def write_text(path: Path, text: str) -> Path:
    """Put `text` at `path` as UTF-8, whole or not at all; StoreError where the disk refuses."""
    return write_bytes(path, text.encode())
