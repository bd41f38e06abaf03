"""What a model's folder may take of the machine before it is known to be whole.

A number in a config may ask for a table of any size, or for a loop of any length, while a model is
built: position tables, causal masks, lists of layers. Classes of transformers make them in torch,
in numpy and in plain loops, so the whole building is limited, not the numbers.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import isfinite, prod
from pathlib import Path
from typing import Any, TypeVar

from qbench.errors import StoreError
from qbench.files.shards import Entry

MEMORY = 700_000_000  # bytes that tables may take together; those of GPT-2 XL take 50 MB
SECONDS = 1.5  # of processor time; a model of 30 layers takes 0.05
SECONDS_PER_TENSOR = 0.005  # beyond that: a module takes 0.05 ms, and experts are many to a tensor
_COUNTS = (  # of things that have tensors of their own: no file holds fewer tensors than these say
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "num_local_experts",
    "num_experts",
)
_WIDTHS = ("head_dim", "hidden_size", "n_embd", "num_attention_heads")  # of buffers
_AGAIN = 0.1  # seconds between interruptions, should one have been caught on its way
_T = TypeVar("_T")


class _OutOfTimeError(BaseException):
    """The processor time is used up. No `except Exception` on the way may swallow it."""


def built(where: object, build: Callable[[], _T], tensors: int = 0) -> _T:
    """The value of `build`, called within limits. where: the file that describes what is built.

    tensors: how many the files hold, since large models take longer. StoreError where the limits
    do not do; what else `build` raises passes through. In a thread other than the main one, and
    where the system has no such limits, memory and time are those of the machine.
    """
    seconds = SECONDS + SECONDS_PER_TENSOR * tensors
    try:
        with _memory(MEMORY), _processor_time(seconds):
            return build()
    except MemoryError:
        problem = f"more than {MEMORY // 1_000_000} MB"
    except _OutOfTimeError:
        problem = f"more than {seconds:.1f} s of processor time"
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        problem = f"more than {MEMORY // 1_000_000} MB"
    raise StoreError(
        f"{where} describes a model whose tables take {problem} to build, without any weight; "
        "its numbers are damaged, or too large for this folder: copy it again"
    )


@contextmanager
def _memory(room: int) -> Iterator[None]:
    """Allocations beyond `room` bytes of address space fail."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):  # no Linux
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = pages * resource.getpagesize() + room
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _processor_time(seconds: float) -> Iterator[None]:
    """_OutOfTimeError after so many seconds of this process's own computing."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or not hasattr(signal, "setitimer"):
        yield
        return

    started = time.thread_time()

    def interrupt(*_: Any) -> None:
        if time.thread_time() - started >= seconds:  # other threads' time counts for the timer, too
            raise _OutOfTimeError

    hook = sys.unraisablehook

    def quiet(unraisable: Any) -> None:
        # In a destructor it is lost, and comes again: nothing to tell.
        if unraisable.exc_type is not _OutOfTimeError:
            hook(unraisable)

    sys.unraisablehook = quiet
    before = signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, _AGAIN)
    try:
        yield
    finally:
        with suppress(_OutOfTimeError):
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        sys.unraisablehook = hook


def refuse_implausible(
    config: Mapping[str, Any], entries: Mapping[str, Entry], where: object
) -> None:
    """StoreError where a config.json declares a model that its files cannot hold, or no numbers.

    config: its content. entries: the headers of the tensors. where: its place, for the message.
    Held against before a model is built, as a damaged number could take all memory.
    """
    axes = [size for entry in entries.values() for size in entry.shape[:1]]  # a stack of experts
    most = {"layer": len(entries), "experts": max([len(entries), *axes])}
    for key, value in _numbers(config):
        if isinstance(value, float) and not isfinite(value):  # an int may be too large for one
            raise StoreError(f"{where}: {key} is {value}, which is no number; copy it again")
    numbers = [(key, value) for key, value in _numbers(config) if isinstance(value, int)]
    for key, value in numbers:
        limit = 2**31
        if key.startswith(_COUNTS):
            limit = most["experts" if "experts" in key else "layer"]
        if not -(2**63) <= value <= limit:
            raise StoreError(
                f"{where}: {key}={value} is out of range; at most {limit} fits this folder; "
                "copy it again"
            )
    # transformers makes buffers, such as tables of angles, as large as the config says at once.
    widths = [value for key, value in numbers if key in _WIDTHS and value > 0]
    if prod(widths) > 2**40:
        raise StoreError(
            f"{where}: {', '.join(_WIDTHS)} are too large together; copy the folder again"
        )


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """The numbers of a config, then those of the configs in it, as of a text model in a larger.

    Not those in lists: Mamba's time_step_limit has an infinite end.
    """
    for key, value in config.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield key, value
    for key, value in config.items():
        if isinstance(value, Mapping) and key != "quantization_config":
            yield from _numbers(value)
