"""GPTQ: round column by column, and spread each rounding error over the columns still to come.

Frantar, Ashkboos, Hoefler and Alistarh 2022, arXiv:2210.17323, algorithm 1, which
`qbench.methods.error_feedback` explains. Act-order processes the columns by decreasing H_ii.

There are two ways to find the grids of groups. With both, the order of the columns need not be
stored. Static groups: all grids are fixed beforehand, and columns come in any order. Dynamic
groups: the grid of a group is searched when its turn comes, for its columns with the errors of
earlier ones, and the columns of a group follow each other; groups are ordered by their mean
curvature. (Group-aware reordering, GAR, of Dual Precision Quantization, Gafni et al. 2025,
arXiv:2505.14638, has the same order, with grids of its own.)

The loss is the sum of the e^2, so that rounding column i costs exactly (w_i - q)^2 / U_ii^2. So
1 / U_ii^2, the curvature that is left when later columns make up for the error, can weight the
errors in the search of a grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from qbench.contracts import LinearStats, Scheme
from qbench.errors import require_at_least
from qbench.formats import Uniform
from qbench.formats.stepped import Numbers, Stepped, values
from qbench.methods.dynamic_groups import DynamicGroups
from qbench.methods.error_feedback import (
    check_damp,
    importance,
    inverse_cholesky,
    live_hessian,
    round_columns,
)
from qbench.methods.grids import zero_as_float
from qbench.methods.rtn import RTN


@dataclass(frozen=True)
class GPTQ:
    """Optimal-brain rounding with second-order statistics of the inputs.

    damp: added to the diagonal, as a fraction of its mean; multiplied by 10 up to three times where
        the Cholesky factorization fails.
    act_order: columns by decreasing curvature.
    block_size: columns between two large updates; the result does not depend on it.
    clip, zero_point, norm, scale_bits: of the grid, as in `rtn`.
    importance: how the search of a grid weights errors. `none`: all alike; `curvature`: by the
        curvature of their column; `best`: both are tried, and each row
        keeps the smaller loss; with dynamic groups each group does, and later ones follow from it.
    groups: `static` or `dynamic`, as above; `best`: both, and each row keeps the
        smaller loss.
    """

    name: ClassVar[str] = "gptq"
    paper: ClassVar[str] = "Frantar et al., GPTQ, ICLR 2023, arXiv:2210.17323"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True

    damp: float = 0.01
    act_order: bool = True
    block_size: int = 128
    clip: Literal["search", "none"] = "search"
    zero_point: Literal["integer", "real"] = "integer"
    norm: float = 2.0
    importance: Literal["best", "curvature", "none"] = "best"
    groups: Literal["best", "static", "dynamic"] = "best"
    scale_bits: int = 16

    def __post_init__(self) -> None:
        check_damp(self.damp)
        require_at_least("block_size", self.block_size)
        RTN(norm=self.norm, scale_bits=self.scale_bits)  # checks these two

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        """weight (out, in), Hessian (in, in): -> Uniform.

        MethodError where no damping makes the Hessian positive definite.
        """
        rounded = self.rounded(weight, stats, scheme)
        return Uniform.from_codes(rounded.codes, rounded.scale, rounded.zero, scheme.bits)

    def rounded(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> OnGrid:
        """weight (out, in), Hessian (in, in): -> its codes, grids and compensated values.

        Each row is that of the least loss among the ways that `importance` and `groups` allow.
        """
        return reduce(better_rows, self._ways(weight.float(), live_hessian(stats), scheme))

    def _ways(self, W: Tensor, H: Tensor, scheme: Scheme) -> Iterator[OnGrid]:
        """W (out, in), rounded in every way that `importance` and `groups` allow."""
        group = scheme.group_length(W.shape[1])
        dynamic = self.groups != "static" and group < len(H)  # else the same as static
        if not dynamic or self.groups == "best":
            order = torch.arange(len(H), device=H.device)
            if self.act_order:
                order = H.diagonal().argsort(descending=True, stable=True)
            yield from self._static(W, H, order, group, scheme)
        if dynamic:
            order = _group_order(H.diagonal(), group, self.act_order)
            yield self._dynamic(W, H, order, group, scheme)

    @property
    def _grids(self) -> RTN:
        return RTN(self.clip, self.zero_point, self.norm, scale_bits=self.scale_bits)

    @property
    def _weighted(self) -> tuple[bool, ...]:
        """For each search of a grid, whether it weights errors by curvature."""
        return {"best": (False, True), "curvature": (True,), "none": (False,)}[self.importance]

    def _static(
        self, W: Tensor, H: Tensor, order: Tensor, group: int, scheme: Scheme
    ) -> Iterator[OnGrid]:
        """Static groups, once for each search; the grids are those of W (out, in) itself."""
        # Rows and columns of H alike go into the order of processing.
        U = inverse_cholesky(H[order][:, order], self.damp)
        curvature = torch.empty_like(U[0])
        curvature[order] = U.diagonal() ** -2
        grouped = W.unflatten(1, (-1, group))  # (out, groups, g)
        for weighted in self._weighted:
            counts = curvature.view(-1, group) if weighted else None
            scale, zero = self._grids.snapped_grid(grouped, scheme, counts)
            # (out, in): each column's scale and zero point, in the order of processing.
            s = values(scale).float()
            z = zero_as_float(s, values(zero), scheme.bits).repeat_interleave(group, 1)[:, order]
            s = s.repeat_interleave(group, 1)[:, order]
            top = 2**scheme.bits - 1
            codes, compensated, loss = round_columns(W[:, order], U, s, z, top, self.block_size)
            # Back to the order of the weight: column order[i] was the i-th to be rounded.
            back = order.argsort()
            yield OnGrid(codes[:, back], scale, zero, compensated[:, back], loss)

    def _dynamic(self, W: Tensor, H: Tensor, order: Tensor, group: int, scheme: Scheme) -> OnGrid:
        """Dynamic groups; each row of a group has the better of the searches."""
        U = inverse_cholesky(H[order][:, order], self.damp)
        counts = importance(H, self.damp).view(-1, group)
        # Says in which dtype, or in which steps, scales and zero points are stored.
        stored = self._grids.snapped_grid(W.unflatten(1, (-1, group)), scheme, counts)
        groups = DynamicGroups(self._grids, stored, self._weighted, scheme, self.block_size)
        rounded, (scale, zero) = groups.round(W[:, order], U, order)
        back = order.argsort()
        return OnGrid(rounded.codes[:, back], scale, zero, rounded.values[:, back], rounded.loss)


class OnGrid(NamedTuple):
    """A weight on a grid: codes, scale and zero are what `Uniform.from_codes` takes.

    values (out, in) float32: the compensated weights, to which the codes are nearest. loss (out,)
    float32: see `error_feedback.Rounded`.
    """

    codes: Tensor
    scale: Numbers
    zero: Numbers | None
    values: Tensor
    loss: Tensor


def better_rows(first: OnGrid, second: OnGrid) -> OnGrid:
    """Each row from the argument in which its loss is smaller; from `first` where they are equal.

    Where the two store scales or zero points in different kinds of numbers, the better whole one.
    """
    better = second.loss < first.loss  # (out,)
    scale = _rows_of(better, second.scale, first.scale)
    zero = None if first.zero is None else _rows_of(better, second.zero, first.zero)
    if scale is None or (zero is None) != (first.zero is None):
        return second if second.loss.sum() < first.loss.sum() else first
    return OnGrid(
        torch.where(better[:, None], second.codes, first.codes),
        scale,
        zero,
        torch.where(better[:, None], second.values, first.values),
        torch.where(better, second.loss, first.loss),
    )


def _rows_of(better: Tensor, chosen: Numbers | None, other: Numbers | None) -> Numbers | None:
    """Rows of `chosen` where `better` (out,) says so, else of `other`; None if they do not fit."""
    if isinstance(chosen, Tensor) and isinstance(other, Tensor):
        if chosen.dtype != other.dtype:
            return None
        return torch.where(better[:, None], chosen, other)
    if isinstance(chosen, Stepped) and isinstance(other, Stepped):
        if chosen.span.dtype != other.span.dtype:
            return None
        codes = torch.where(better[:, None], chosen.codes, other.codes)
        return replace(chosen, codes=codes, span=torch.where(better, chosen.span, other.span))
    return None


def _group_order(diagonal: Tensor, group: int, act_order: bool) -> Tensor:
    """(in,) int64: groups one after the other, as `DynamicGroups.round` takes them.

    act_order: groups by decreasing mean of diagonal (in,), and columns within a group likewise.
    """
    columns = torch.arange(len(diagonal), device=diagonal.device).view(-1, group)
    if not act_order:
        return columns.flatten()
    grouped = diagonal.view(-1, group)
    inner = grouped.argsort(dim=1, descending=True, stable=True)
    outer = grouped.mean(1).argsort(descending=True, stable=True)
    return columns.gather(1, inner)[outer].flatten()
