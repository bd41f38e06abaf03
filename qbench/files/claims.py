"""Claims on a piece of work: a lock on a file, which the system lets go when its holder ends.

So a runner that was killed holds nothing up. Where a file system knows no locks, as some of
clusters do not, every claim is granted: one runner works as ever, and several are not kept apart.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qbench.errors import StoreError

POLL = 0.2  # seconds between two tries where a claim is waited for
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # a pipe is opened without waiting for its writer
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)


@contextmanager
def claimed(path: Path, shared: bool = False) -> Iterator[bool]:
    """Whether the file at `path` is claimed for the `with` block, or somebody else has it.

    shared: together with others who share it. StoreError where the file cannot be made.
    """
    descriptor = _open(path)
    try:
        yield _lock(descriptor, shared)
    finally:
        os.close(descriptor)


@contextmanager
def claimed_in_time(
    path: Path, waiting: Callable[[], None] = lambda: None, shared: bool = False
) -> Iterator[None]:
    """Claim the file at `path`; `waiting` is called now and then while somebody else has it.

    Where that one has removed the file meanwhile, it is made again.
    """
    while True:
        descriptor = _open(path)
        try:
            while not _lock(descriptor, shared):
                waiting()
                time.sleep(POLL)
            if _is_at(path, descriptor):
                yield
                return
        finally:
            os.close(descriptor)


def is_claimed(path: Path, shared: bool = False) -> bool:
    """Whether somebody has claimed the file at `path` for himself; nothing is made or kept.

    shared: whether one who shares it counts, too. Where a file system knows no locks, nobody has,
    and nobody claims what is no ordinary file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _AT_ONCE)
    except (OSError, ValueError):  # nothing is there, or no possible name
        return False
    try:
        ordinary = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return ordinary and not _lock(descriptor, shared=not shared)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written ({error.strerror}); "
            "free space, or choose a place that you can write to"
        ) from error


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open file is the one that others find there."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _lock(descriptor: int, shared: bool) -> bool:
    """Whether the lock is ours; it goes when the last copy of the descriptor is closed."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return True
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True
