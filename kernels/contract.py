"""What a kernel is: a function that multiplies with a packed weight, and what it declares.

A kernel is one file of this folder, or a package in it whose `__init__` names its kernels; follow
`dequantized.py`. `qbench.kernels.registry` finds it, and `qbench check NAME` compares it with
`qbench.kernels.reference`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from qbench.contracts import WeightFormat

WORD = 32  # inputs whose bits of a plane many kernels read together


class Description(TypedDict):
    """What describes a weight beside its tensors.

    format: name of the weight format. parts: names of its tensors, in the order in which they are
    passed. spec: what the format's `spec()` returns, JSON-able. shape: [out, in].
    """

    format: str
    parts: list[str]
    spec: dict[str, Any]
    shape: list[int]


class Request(NamedTuple):
    """The facts about a product by which a kernel is chosen.

    format: name of the weight format. bits: per code, or None where the format counts none.
    group_size: inputs that share a scale, or None. shape: (out, in) of the weight. device: type of
    the device, such as `cpu` or `cuda`. dtype: of x. rows: of x, the product of all axes but the
    last.
    """

    format: str
    bits: int | None
    group_size: int | None
    shape: tuple[int, int]
    device: str
    dtype: torch.dtype
    rows: int


class Prepared(NamedTuple):
    """A weight in the layout that one kernel reads, for many products.

    run: x (rows, in), contiguous and on the weight's device -> (rows, out). nbytes: bytes of the
    weight that a product reads. copied: makes a copy in other memory; None where a copy can only be
    prepared from the weight.
    """

    run: Callable[[Tensor], Tensor]
    nbytes: int
    copied: Callable[[], Prepared] | None = None


Run = Callable[[Tensor, list[Tensor], Tensor | None, Description], Tensor]


@dataclass(frozen=True)
class Kernel:
    """One way to compute products, and the requests that it serves. None in a declaration: all.

    name: by which `--kernels`, `using` and `qbench check` know it.
    run(x, parts, bias, description): x (..., in) floating, any strides; parts, the weight's
        tensors; bias (out,) floating or None -> (..., out), new, in the dtype of x. It changes
        none of its arguments, and repeats its result bit for bit.
    formats, devices, dtypes (of x): those that it serves. bits, batch: the least and the most that
        it serves, inclusive; a batch may have no limit. The batch counts the rows of x.
    automatic: whether it may be chosen without being named. By default it may not, so that
        installing a package does not change how products are computed.
    priority: of the automatic kernels that serve a request, the one with the highest priority is
        chosen, and of equals the first by name. This holds for kernels of every origin.
    error: bound of |y - y64| / |y64| in norm over all of y, with normally distributed x in float32
        and a weight of several outputs in which no input outweighs the others, since a single
        number may be what is left of a difference; y64 is the product in float64.
    roundings: how many machine epsilons of the dtype of x (`torch.finfo(dtype).eps`) are added to
        the bound; one, where weight and result are rounded once each.
    available: the reason why it cannot be used in this process at all, or None. refuses: the
        reason why it does not serve a request that fits its declarations, or None.
    describe: a few words about it on this machine, for `qbench list kernels`.
    prepare: weight -> `Prepared`, for a kernel that reads a layout of its own; by default the
        weight's parts are copied and passed to `run`.
    label: its name in the rows of `qbench latency`; None for `name`. timed: whether `qbench
        latency` times it without being asked to.
    """

    name: str
    run: Run
    formats: tuple[str, ...] | None = None
    bits: tuple[int, int] | None = None
    devices: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    batch: tuple[int, int | None] = (0, None)
    automatic: bool = False
    priority: int = 10
    error: float = 1e-5
    roundings: float = 1.0
    available: Callable[[], str | None] = lambda: None
    refuses: Callable[[Request], str | None] = lambda request: None
    describe: Callable[[], str] = lambda: ""
    prepare: Callable[[WeightFormat], Prepared] | None = None
    label: str | None = None
    timed: bool = True

    def bound(self, dtype: torch.dtype) -> float:
        """The relative error that is allowed with x of this dtype."""
        return self.error + self.roundings * torch.finfo(dtype).eps

    def refusal(self, request: Request) -> str | None:
        """Why it does not serve this request, or None."""
        for what, value, allowed in (
            ("format", request.format, self.formats),
            ("device", request.device, self.devices),
            ("dtype", request.dtype, self.dtypes),
        ):
            if allowed is not None and value not in allowed:
                return f"{what} {value} is not one of {', '.join(map(str, allowed))}"
        if self.bits is not None:
            least, most = self.bits
            if not least <= (request.bits or 0) <= most:
                return f"bits={request.bits} is not in {least}..{most}"
        fewest, limit = self.batch
        if request.rows < fewest or (limit is not None and request.rows > limit):
            end = "any" if limit is None else limit
            return f"{request.rows} rows of x are not in {fewest}..{end}"
        try:
            return self.available() or self.refuses(request)
        except Exception as error:  # of a foreign kernel, which must not stop the others
            return f"it raised {type(error).__name__}: {error}"


def not_whole_words(columns: int, group_size: int | None) -> str | None:
    """Why a kernel that reads whole words does not serve so many inputs, or None where it does.

    group_size: inputs that share a scale; None: all.
    """
    group = group_size or columns
    if columns % WORD or group % WORD:
        return f"groups of {group} in {columns} inputs are not multiples of {WORD}"
    return None
