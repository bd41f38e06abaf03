"""Files and folders that are replaced whole or not at all.

Whatever is written is first made in a scratch directory beside its place, flushed to the disk, and
then renamed. So a reader, or a process that is killed, sees the old one or the new one.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qbench.errors import QbenchError, StoreError

_AT_FDCWD = -100  # paths count from the working directory (linux/fcntl.h)
_RENAME_EXCHANGE = 2  # (linux/fs.h)
_SCRATCH = re.compile(r"\.(?P<name>.+)-[a-z0-9_]{8}")  # as `_beside` names a scratch directory


def require_place(*paths: Path | None) -> None:
    """StoreError, before any work, where no file can be written at one of these in the end, or two
    of them are one. None is a file that is not asked for.
    """
    asked = [path for path in paths if path is not None]
    places = [os.path.abspath(path) for path in asked]
    for path, place in zip(asked, places, strict=True):
        if places.count(place) > 1:
            raise StoreError(f"{path} is given for two files; choose another for one of them")
    for path in asked:
        problem = "it is a folder" if os.path.isdir(path) else what_prevents(path)
        if problem is not None:
            raise StoreError(f"{path} cannot be written: {problem}; choose another file")


def what_prevents(path: Path) -> str | None:
    """Why nothing can be put at a path, a file or a folder, or None; it is tried beside the path.

    Some systems of files refuse what the rights of a folder allow, and others a name.
    """
    if _is_device(path):
        return "it is a device or a stream, which a file would replace"
    parent = path.absolute().parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return f"{parent} is no folder that you can write to"
    try:
        with tempfile.TemporaryDirectory(dir=parent, prefix=f".{path.name}-"):
            return None
    except (OSError, ValueError) as error:
        return f"{getattr(error, 'strerror', None) or error}"


def _is_device(path: Path) -> bool:
    """Whether a path is neither a file nor a folder, or links to an open one, as /dev/stdout."""
    if os.path.islink(path) and os.readlink(path).startswith("/proc/"):
        return True
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def require_apart(output: Path, source: Path) -> None:
    """StoreError, before any work, where to write `output` would change the model that is read.

    source: the folder or file of that model. It would where one is the other or lies in it, by
    whatever names.
    """
    written, read = (Path(os.path.realpath(path)) for path in (output, source))
    problem = None
    if written == read:
        problem = "is"
    elif written in read.parents:
        problem = "holds"
    elif read in written.parents:
        problem = "lies in"
    if problem is not None:
        raise StoreError(
            f"{output} {problem} the model that is read, {source}; choose another place for what "
            "is written"
        )


def refusal_of(folder: Path, *folders: Path) -> str | None:
    """Make a folder, and others, if need be, and try it: why no file can be made there, or None."""
    try:
        for each in (folder, *folders):
            each.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return error.strerror or str(error)


def require_folders(folder: Path, names: Iterable[str]) -> None:
    """StoreError, before any work, where one of these names is there in a folder, and nothing can
    be made in it, as where it is a file.
    """
    for name in names:
        place = folder / name
        refusal = refusal_of(place) if os.path.lexists(place) else None
        if refusal is not None:
            raise StoreError(
                f"{place} cannot be written ({refusal}); remove it, or make it a folder that you "
                "can write to"
            )


def write_whole(path: Path, write: Callable[[Path], object], flush: bool = True) -> Path:
    """Let `write` make a file at the path that it is called with, and put that file at `path`.

    Returns `path`. flush: whether it must outlast a power cut, for which it waits for the disk.
    Whatever `write` raises, nothing stays behind. StoreError where the disk refuses.
    """
    with _beside(path) as part:
        write(part)
        if flush:
            _flush(part)
        os.replace(part, path)
    return path


def write_bytes(path: Path, data: bytes, flush: bool = True) -> Path:
    """Put `data` at `path`, as `write_whole` does."""
    return write_whole(path, lambda part: part.write_bytes(data), flush)


def write_text(path: Path, text: str, flush: bool = True) -> Path:
    """Put `text` at `path` as UTF-8, as `write_whole` does."""
    return write_bytes(path, text.encode(), flush)


def write_whole_folder(folder: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill the empty folder that it is called with, and put that folder at `folder`.

    Returns `folder`. A folder that was there before is removed, once the new one is in its place.
    Whatever `write` raises, nothing stays behind. StoreError where the disk refuses.
    """
    with _beside(folder) as part:
        part.mkdir()
        write(part)
        for file in part.rglob("*"):
            _flush(file)
        _flush(part)
        _swap(part, folder)
    return folder


def remove_file(path: Path) -> None:
    """Remove a file if it is there; StoreError where it cannot be, as of a folder."""
    try:
        path.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(f"{path} cannot be written ({reason}); choose another place") from None


def remove(path: Path) -> None:
    """Remove a file or a folder, of a link the link alone; StoreError where that is refused."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read or removed ({error.strerror}); remove it yourself"
        ) from error


def leftovers(folder: Path, seconds: float = 0.0) -> list[Path]:
    """The scratch directories in a folder and below it that killed processes have left there.

    seconds: how long nothing in them has changed; one that is written at this moment is young.
    """
    left = []
    for place, names, _ in os.walk(folder):
        for name in list(names):
            scratch = _SCRATCH.fullmatch(name)
            path = Path(place) / name
            if scratch is None or path.is_symlink():
                continue
            try:
                content = list(path.iterdir())
                files = [path, *content, *(file for entry in content for file in entry.glob("*"))]
                changed = max(file.lstat().st_mtime for file in files)
            except FileNotFoundError:  # its process has just finished, and it is none any more
                continue
            ours = all(_is_of(entry.name, scratch["name"]) for entry in content)
            if ours and time.time() - changed >= seconds:
                left.append(path)
                names.remove(name)  # what lies in it goes with it
    return sorted(left)


def _is_of(entry: str, name: str) -> bool:
    """Whether a scratch directory for `name` may hold such an entry, such as another for it."""
    scratch = _SCRATCH.fullmatch(entry)
    return entry in (name, f"{name}.old") or (scratch is not None and scratch["name"] == name)


def put(new: Path, path: Path) -> Path:
    """Put a file or folder that is finished, on the same disk, at `path`; returns `path`.

    What was there goes. StoreError where the disk refuses.
    """
    try:
        if new.is_dir():
            _swap(new, path)
        else:
            os.replace(new, path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}); choose another place"
        ) from None
    return path


@contextmanager
def in_the_name_of(path: Path, scratch: Path) -> Iterator[None]:
    """Errors of ours that name `scratch`, which is gone when they are read, name `path` instead."""
    try:
        yield
    except QbenchError as error:
        error.args = tuple(str(text).replace(str(scratch), str(path)) for text in error.args)
        raise


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A place of the same name in a scratch directory on the same disk, which goes in the end."""
    if _is_device(path):
        raise StoreError(f"{path} cannot be written: it is a device or a stream; choose a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
            place = Path(scratch) / path.name
            with in_the_name_of(path, place):
                yield place
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"{path} cannot be written ({reason}); {_advice(error)}") from error


def _advice(error: OSError) -> str:
    """What to do where a file cannot be written."""
    if error.errno == errno.ENOMEM:
        return "memory has run out, and not the disk: end other programs, or raise its limit"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "too many files are open: raise their limit (`ulimit -n`)"
    return "free space, or choose a place that you can write to"


def _flush(path: Path) -> None:
    """Wait until a file, or the list of names that a folder is, has reached the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap(new: Path, folder: Path) -> None:
    """Put the folder `new` in the place of `folder`; one that was there then stands beside `new`.

    On Linux this is one step. Elsewhere the old folder steps aside first.
    """
    if not folder.exists():
        new.rename(folder)
        return
    if not _exchange(new, folder):
        folder.rename(new.with_name(f"{new.name}.old"))
        new.rename(folder)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step, and say whether that was possible (renameat2, Linux 3.15)."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    status: int = libc.renameat2(
        _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE
    )
    return status == 0
