"""Which kernel serves a product: declared properties, a choice that can be asked, and a count of what served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qbench.errors import ConfigError, unknown_name


class Request(NamedTuple):
    """A product as the choice sees it. bits: None where a format counts none; rows: of x, all axes but the last."""

    format: str
    bits: int | None
    group_size: int | None
    shape: tuple[int, int]
    device: str
    dtype: torch.dtype
    rows: int


Run = Callable[[Tensor, list[Tensor], Tensor | None, Mapping[str, Any]], Tensor]


@dataclass(frozen=True)
class Kernel:
    """What computes products, and for which it does. None: for all.

    run: x (..., in) floating and as the request says, the weight's parts, bias (out,) or None, and
    the weight's description -> (..., out) in the dtype of x. automatic: whether it may be taken
    without being named. available: the reason why it cannot be used here at all, or None. refuses:
    the same for one request. describe: what it is, on this machine.
    """

    name: str
    run: Run
    formats: tuple[str, ...] | None = None
    bits: tuple[int, int] | None = None
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    batch: tuple[int, int | None] = (0, None)
    automatic: bool = True
    available: Callable[[], str | None] = lambda: None
    refuses: Callable[[Request], str | None] = lambda request: None
    describe: Callable[[], str] = lambda: ""

    def refusal(self, request: Request) -> str | None:
        """Why it does not serve this request, or None."""
        for what, value, allowed in (
            ("format", request.format, self.formats),
            ("device", request.device, self.devices),
            ("dtype", request.dtype, self.dtypes),
        ):
            if allowed is not None and value not in allowed:
                return f"{what} {value} is not one of {', '.join(map(str, allowed))}"
        if self.bits is not None and not self.bits[0] <= (request.bits or 0) <= self.bits[1]:
            return f"bits={request.bits} is not in {self.bits[0]}..{self.bits[1]}"
        low, high = self.batch
        if request.rows < low or (high is not None and request.rows > high):
            return f"{request.rows} rows of x are not in {low}..{'any' if high is None else high}"
        return self.available() or self.refuses(request)


KERNELS: dict[str, Kernel] = {}
_served: Counter[str] = Counter()
_named: ContextVar[str | None] = ContextVar("kernel", default=None)


def register(kernel: Kernel) -> None:
    """Later ones are preferred by the automatic choice. ConfigError for a name that is taken."""
    if kernel.name in KERNELS:
        raise ConfigError(
            f"kernel {kernel.name!r} is registered twice; give one of them another name"
        )
    KERNELS[kernel.name] = kernel
    choose.cache_clear()


@lru_cache(maxsize=4096)
def choose(request: Request, name: str | None = None) -> Kernel:
    """The kernel of that name, or the automatic choice: the last registered that does not refuse.

    ConfigError where the named one is unknown, or cannot serve: nothing else is put in its place.
    """
    if name is None:
        return next(
            k for k in reversed(KERNELS.values()) if k.automatic and k.refusal(request) is None
        )
    if name not in KERNELS:
        raise ConfigError(unknown_name("kernel", name, KERNELS))
    if (reason := KERNELS[name].refusal(request)) is not None:
        raise ConfigError(
            f"kernel {name!r} cannot compute this: {reason}; `qbench list kernels` tells what each can"
        )
    return KERNELS[name]


@contextmanager
def using(name: str | None) -> Iterator[None]:
    """Products inside are computed by this kernel, or end in a ConfigError; None: by the automatic choice."""
    if name is not None and name not in KERNELS:
        raise ConfigError(unknown_name("kernel", name, KERNELS))
    token = _named.set(name)
    try:
        yield
    finally:
        _named.reset(token)


def named() -> str | None:
    """What `using` asks for here."""
    return _named.get()


def record(kernel: Kernel) -> None:
    """Count a product."""
    _served[kernel.name] += 1


def served(clear: bool = False) -> dict[str, int]:
    """How many products each kernel has computed since the process began, or since they were last cleared."""
    counts = dict(_served)
    if clear:
        _served.clear()
    return counts


def explain(request: Request) -> dict[str, str]:
    """For each kernel, why it is not the automatic choice; the one that is stands last, with an empty reason."""
    reasons: dict[str, str] = {}
    for kernel in reversed(KERNELS.values()):
        reason = kernel.refusal(request)
        reasons[kernel.name] = reason or ("" if kernel.automatic else "it is only taken by name")
        if not reasons[kernel.name]:
            break
    return reasons
