"""Work in processes of their own, so that a crash, a hang or a dead CUDA context ends one of them.

The processes are forked from a server that has imported torch and never touches the GPU: a new one
takes a fraction of a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

Item = TypeVar("Item")


class Outcome(NamedTuple):
    """What became of one item: a result, or the reason why there is none."""

    item: Any
    result: Any
    reason: str | None


def each(
    function: Callable[[Item], Any], items: Iterable[Item], workers: int, seconds: float
) -> Iterator[Outcome]:
    """function(item) of every item, as they end; so many processes at a time, so long in all.

    function: importable, as its module is imported in the server.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    deadline = time.monotonic() + seconds
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_one, context, function, item, deadline) for item in items]
        for future in as_completed(futures):
            yield future.result()


def _one(context: Any, function: Callable[[Any], Any], item: Any, deadline: float) -> Outcome:
    left = deadline - time.monotonic()
    if left <= 0:
        return Outcome(item, None, "not reached in time")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, function, item))
    process.start()
    theirs.close()
    try:
        if not ours.poll(left):
            return Outcome(item, None, f"not finished in time, {left:.0f} s after its start")
        return Outcome(item, *ours.recv())
    except EOFError:
        process.join()
        return Outcome(item, None, f"its process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _send(to: Connection, function: Callable[[Any], Any], item: Any) -> None:
    try:
        message = (function(item), None)
    except Exception as error:  # whatever it is, it is the result
        message = (None, f"{type(error).__name__}: {error}"[:500])
    to.send(message)
    to.close()
