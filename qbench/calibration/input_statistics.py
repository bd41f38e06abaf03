"""Second moments of the inputs of linear layers, over the calibration text."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qbench.calibration.watching import watch
from qbench.contracts import BlockInputs, LinearStats
from qbench.errors import MethodError
from qbench.models.blocks import linears, read_weight


@torch.no_grad()
def input_statistics(block: nn.Module, inputs: BlockInputs) -> dict[str, LinearStats]:
    """By layer, the statistics of its inputs in the quantized stream, with the block as it is.

    Layers that are called with the same tensor, one after the other, share one object. A layer that
    no token reaches is missing. MethodError naming a layer whose inputs are not finite.
    """
    statistics = InputStatistics()
    sums: dict[str, LinearStats] = {}  # over the batches, by the first layer with these inputs
    owners: dict[str, str] = {}  # that first layer, by layer
    last: LinearStats | None = None
    owner = ""

    def collect(name: str, layer: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        nonlocal last, owner
        stats = statistics.of([args[0]], name)
        if stats is not last:  # an input that no layer has been called with in this batch
            last = stats
            owner = name
            if name in sums:
                sums[name] = _merged(sums[name], stats)
            else:
                sums[name] = stats
        owners[name] = owner

    watch(block, inputs, [(name, partial(collect, name)) for name in linears(block)])
    return {name: sums[first] for name, first in owners.items()}


def _merged(old: LinearStats, new: LinearStats) -> LinearStats:
    """The statistics of both sets of tokens: the Hessians' mean, weighted by their counts."""
    count = old.count + new.count
    hessian = torch.lerp(old.hessian, new.hessian, new.count / max(count, 1))
    return LinearStats(hessian, count)


def no_statistics(layer: Any) -> LinearStats:
    """The statistics of a layer that no token reached: zeros."""
    _, width = read_weight(layer).shape
    return LinearStats(torch.zeros(width, width, device=layer.weight.device), 0)


class InputStatistics:
    """Second-order statistics of a layer's inputs; layers with the same inputs share the result."""

    def __init__(self) -> None:
        self._inputs: list[Tensor] = []
        self._stats: LinearStats | None = None

    def of(self, inputs: list[Tensor], name: str) -> LinearStats:
        """The statistics over all of `inputs`, one tensor (batch, length, in) per stream.

        The same object as before where the tensors are the same as in the last call. MethodError
        naming the layer where the inputs are not finite.
        """
        if self._stats is None or not self._are_the_last(inputs):
            self._stats = _second_order(inputs, name)
            self._inputs = inputs
        return self._stats

    def _are_the_last(self, inputs: list[Tensor]) -> bool:
        """Whether they are the very tensors of the last call, such as those of q, k and v."""
        if len(inputs) != len(self._inputs):
            return False
        return all(new is old for new, old in zip(inputs, self._inputs, strict=True))


def _second_order(inputs: list[Tensor], name: str) -> LinearStats:
    """2/count * sum over all tokens of x x^T; `name` is the layer's, for the error."""
    sums = Sums(inputs[0])
    for x in inputs:
        sums.add(x)
    return sums.statistics(name)


class Sums:
    """The sum of x x^T over the inputs x of a layer, one batch after the other."""

    def __init__(self, x: Tensor) -> None:
        """x: an input, for its width and device."""
        width = x.shape[-1]
        self._hessian = torch.zeros(width, width, device=x.device)
        self._count = 0

    def add(self, x: Tensor) -> None:
        """Add an input (..., in)."""
        rows = x.reshape(-1, x.shape[-1])  # (tokens, in)
        self._hessian += _gram(rows)
        self._count += len(rows)

    def statistics(self, name: str) -> LinearStats:
        """2/count * the sum, which is used up. MethodError naming the layer where not finite."""
        hessian = self._hessian
        hessian *= 2 / max(self._count, 1)  # a stream of no tokens leaves zeros
        # One sum shows it: a single token that is not finite leaves NaN or infinity there.
        if not torch.isfinite(hessian).all():
            raise MethodError(
                f"the inputs of {name} are not finite on the calibration text, or their squares "
                "are not in float32; check the model in float32, or take a method that does not "
                "look at inputs, such as rtn"
            )
        return LinearStats(hessian, self._count)


def _gram(rows: Tensor) -> Tensor:
    """x^T x (in, in) float32 of rows (tokens, in), floating.

    On the CPU numpy sees the symmetry and does half the work, where torch does not. On a GPU the
    tensor cores multiply numbers of 16 bits exactly, and add in float32.
    """
    device = rows.device.type
    if device != "cpu":
        with torch.autocast(device, enabled=False):  # statistics stay float32
            if torch.version.cuda and rows.dtype in (torch.bfloat16, torch.float16):
                return torch.mm(rows.T, rows, out_dtype=torch.float32)
            return rows.float().T @ rows.float()
    array = rows.float().contiguous().numpy()
    with np.errstate(all="ignore"):  # what is not finite is reported by name, after all batches
        return torch.from_numpy(array.T @ array)
