"""The one road to files from outside: ordinary, of bounded size, and where they seem to lie.

A folder from elsewhere may hold links to other places of the machine, pipes that never end and
devices. Whoever opens a file of it, or hands a folder to a library, asks here first.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qbench.errors import StoreError

TEXT_BYTES = 100_000_000  # more than any index or record has: a damaged file must not fill memory
MOST_ENTRIES = 100_000  # of a folder, with those inside: a model has some dozens


def ordinary_file(path: Path, folder: Path | None = None) -> Path:
    """`path`, where it is a file that can be read to its end; StoreError where it is not.

    folder: in which it has to lie, also where it is a link; None for a file that the user names.
    """
    target = _target(path)
    if target.is_dir():
        raise StoreError(f"{path} is a folder, not a file; remove it, or copy the file there again")
    if not target.is_file():
        raise StoreError(f"{path} is no ordinary file (a pipe, socket or device); remove it")
    if folder is not None:
        _require_inside(path, target, folder)
    return path


def ordinary_bytes(path: Path, folder: Path | None = None, limit: int = TEXT_BYTES) -> bytes:
    """What an ordinary file holds. StoreError where it is none, or larger than `limit` bytes."""
    ordinary_file(path, folder)
    try:
        with path.open("rb") as file:
            # No more room is taken than the file has bytes.
            data = file.read(min(limit, os.fstat(file.fileno()).st_size) + 1)
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror})") from None
    if len(data) > limit:
        raise StoreError(
            f"{path} is larger than {limit // 1_000_000} MB, which no such file is; copy it again"
        )
    return data


def ordinary_text(path: Path, folder: Path | None = None, limit: int = TEXT_BYTES) -> str:
    """What an ordinary file in UTF-8 holds. StoreError as for `ordinary_bytes`, and otherwise."""
    data = ordinary_bytes(path, folder, limit)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StoreError(f"{path} is no text in UTF-8 ({error}); write it again") from None


def json_of(text: str | bytes) -> Any:
    """What a JSON text from outside says; ValueError where it is none, or nested endlessly."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested more deeply than can be read") from None


def require_ordinary_files(folder: Path) -> None:
    """StoreError where something in a folder, however deep, is no ordinary file in it.

    Hidden folders are left out, since nothing reads them. Links of the hub's cache lead from
    snapshots/REVISION into blobs, and stay allowed.
    """
    for path in contents_of(folder):
        target = _target(path)
        _require_inside(path, target, folder)
        if not (target.is_file() or target.is_dir()):
            raise StoreError(
                f"{path} is no ordinary file (a pipe, socket or device); "
                "give the folder of a model alone, or remove it"
            )


def contents_of(folder: Path) -> Iterator[Path]:
    """Everything in a folder and below it, in a fixed order; no link is followed.

    StoreError where that is more than a model has, or a folder cannot be read.
    """
    count = 0
    try:
        for place, folders, files in os.walk(folder, onerror=_raise):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted([*folders, *files]):
                count += 1
                if count > MOST_ENTRIES:
                    raise StoreError(
                        f"{folder} holds more than {MOST_ENTRIES:,} files and folders; "
                        "give the folder of a model alone"
                    )
                yield Path(place) / name
    except OSError as error:
        raise StoreError(f"{error.filename} cannot be read ({error.strerror})") from None


def is_folder(path: Path) -> bool:
    """Whether there is a folder at a path that a user names; a name that no system takes is none.

    `Path.is_dir` raises where a name is too long.
    """
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether there is an ordinary file at a path that a user names; see `is_folder`."""
    try:
        return path.is_file()
    except OSError:
        return False


def is_there(path: Path) -> bool:
    """Whether there is anything at a path that a user names; see `is_folder`."""
    try:
        return path.exists()
    except OSError:
        return False


def homes_of(folder: Path) -> tuple[Path, ...]:
    """Where the files of a folder may lie: in it, or in the blobs of the hub's cache it is part of.

    The cache links from models--OWNER--NAME/snapshots/REVISION into models--OWNER--NAME/blobs.
    """
    home = folder.resolve()
    for place in (home, *home.parents):
        blobs = place.parent.parent / "blobs"
        if place.parent.name == "snapshots" and blobs.is_dir():
            return home, blobs.resolve()
    return (home,)


def _target(path: Path) -> Path:
    """Where a path leads in the end; StoreError where that is nowhere."""
    try:
        return path.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # nothing, a circle, no possible name
        if os.path.islink(path):  # unlike the method, false for a name that is none
            raise StoreError(
                f"{path} is a link that leads nowhere ({type(error).__name__}); remove it"
            ) from None
        reason = getattr(error, "strerror", None) or str(error)
        raise StoreError(f"{path} cannot be read: {reason}; copy it again") from None


def _require_inside(path: Path, target: Path, folder: Path) -> None:
    if not any(target.is_relative_to(home) for home in homes_of(folder)):
        raise StoreError(
            f"{path} is a link out of its folder, to {target}; copy the file there instead"
        )


def _raise(error: OSError) -> None:
    raise error
