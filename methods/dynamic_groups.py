"""Error feedback where the grid of a group is searched for when the group's turn comes.

It is then that of what the columns have become, with the errors of all earlier groups taken in.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from qbench.contracts import Scheme
from qbench.formats.packing import off
from qbench.formats.stepped import Numbers, Stepped, limits, values
from qbench.methods.error_feedback import Rounded, round_span
from qbench.methods.grids import SnappedGrid, zero_as_float, zero_of_stored
from qbench.methods.rtn import RTN


@dataclass(frozen=True)
class DynamicGroups:
    """How the grids of groups are found.

    grids: the search. stored (out, groups): in which dtype, or in which steps, scales and zero
    points are stored; the steps are those of the weight's own grids, and a row of a group keeps its
    own where they do not reach its numbers. weighted: of the searches that are tried, whether
    errors count by the curvature of their columns; a row of a group has the grid with the smaller
    loss. block_size: see `gptq`.
    """

    grids: RTN
    stored: SnappedGrid
    weighted: tuple[bool, ...]
    scheme: Scheme
    block_size: int

    def round(self, W: Tensor, U: Tensor, order: Tensor) -> tuple[Rounded, SnappedGrid]:
        """Round W (out, in), columns in the order of processing, with feedback through U.

        order (in,): where they stand in the weight, a whole group after the other. The grids that
        are returned are in the order of the weight's groups.
        """
        WT = W.T.clone(memory_format=torch.contiguous_format)  # (in, out)
        codes = torch.empty(WT.shape, dtype=torch.uint8, device=WT.device)
        loss = torch.zeros_like(WT[0])
        scale_kind, zero_kind = self.stored
        scale = values(scale_kind).float()
        zero = zero_as_float(scale, values(zero_kind), self.scheme.bits)
        group = self.scheme.group_length(len(WT))
        for start in range(0, len(WT), group):
            stop = start + group
            here = slice(start, stop)
            index = order[start] // group
            best = self._round_group(WT[here], U[here, here], scale[:, index], zero[:, index])
            WT[here] = best.columns
            codes[here] = best.codes
            scale[:, index] = best.s
            zero[:, index] = best.z
            loss += best.loss
            WT[stop:].addmm_(U[here, stop:].T, best.errors, alpha=-1)
        grid = (like(scale_kind, scale), None if zero_kind is None else like(zero_kind, zero))
        return Rounded(codes.T.contiguous(), WT.T.contiguous(), loss), grid

    def _round_group(self, WT: Tensor, U: Tensor, own_s: Tensor, own_z: Tensor) -> _Group:
        """The columns WT (g, out) of one group, on the best of its grids.

        own_s, own_z (out,): the grid of the weight itself.
        """

        def on_grid(weighted: bool) -> _Group:
            s, z, held = self._grid(WT, U.diagonal() ** -2 if weighted else None)
            s = torch.where(held, s, own_s)
            z = torch.where(held, z, own_z)
            columns = WT.clone()
            steps = s.expand_as(columns)
            zeros = z.expand_as(columns)
            top = 2**self.scheme.bits - 1
            codes, errors = round_span(columns, U, steps, zeros, top, self.block_size)
            return _Group(codes, columns, errors, s, z, errors.square().sum(0))

        return reduce(_better, map(on_grid, self.weighted))

    def _grid(self, WT: Tensor, curvature: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Scale and zero point (out,) float32, as they will be stored, of columns WT (g, out).

        And whether they can be (`holds`).
        """
        W = WT.T[:, None].contiguous()  # (out, 1, g)
        counts = None if curvature is None else curvature[None]
        s, z = self.grids.real_grid(W, self.scheme, counts)
        scale_kind, zero_kind = self.stored
        held = holds(scale_kind, s)[:, 0]
        searched = s
        s = values(like(scale_kind, s)).float()
        if zero_kind is None:
            return s[:, 0], z[:, 0], held
        integer = isinstance(zero_kind, Tensor) and zero_kind.dtype == torch.uint8
        if not integer:
            z = zero_of_stored(searched, z, s, self.scheme.bits)
        elif isinstance(scale_kind, Stepped):
            z = self.grids.zero_points(W, self.scheme, counts, s, z)
        held = held & holds(zero_kind, z, beside=1.0)[:, 0]
        return s[:, 0], values(like(zero_kind, z)).float()[:, 0], held


class _Group(NamedTuple):
    """codes (uint8), columns, errors (g, out); s, z, loss (out,); float32."""

    codes: Tensor
    columns: Tensor
    errors: Tensor
    s: Tensor
    z: Tensor
    loss: Tensor


def _better(first: _Group, second: _Group) -> _Group:
    """Of every row the one with the smaller loss; `first` where they are equal."""
    better = second.loss < first.loss
    pairs = zip(second, first, strict=True)
    return _Group(*(torch.where(better, new, old) for new, old in pairs))


def like(kind: Numbers, numbers: Tensor) -> Numbers:
    """Numbers (out, any), float32, in the dtype or in the steps of `kind`."""
    if isinstance(kind, Tensor):
        return numbers.to(kind.dtype)
    assert isinstance(kind.bits, int)  # a group has one scale and one zero point
    codes = _in_steps(kind, numbers).round_().clamp_(*limits(kind.bits, kind.signed))
    if not kind.signed:
        codes = torch.where(numbers > 0, codes.clamp_min(1), codes)
    return Stepped.pack(codes, kind.span, kind.bits, kind.places, kind.signed, kind.middle)


def holds(kind: Numbers, numbers: Tensor, beside: float = 0.0) -> Tensor:
    """bool (out, any): which of these numbers `like` only rounds, and does not distort or cut off.

    beside: see `qbench.formats.packing.as_stored`.
    """
    if isinstance(kind, Tensor):
        return ~off(numbers.to(kind.dtype), numbers, beside)
    assert isinstance(kind.bits, int)  # as there
    codes = _in_steps(kind, numbers).round_()
    least, greatest = limits(kind.bits, kind.signed)
    if not kind.signed:
        least = 1  # a scale does not become zero
    return (codes >= least) & (codes <= greatest)


def _in_steps(kind: Stepped, numbers: Tensor) -> Tensor:
    """Numbers (out, any) in units of their row's step; zero where the row has none."""
    step = (kind.span.float() * 2.0**-kind.places)[:, None]
    return (numbers - kind.middle) / torch.where(step > 0, step, torch.inf)
