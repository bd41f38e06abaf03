"""Groups of weights sorted once, for repeated assignment to the levels of binary codings.

The weights nearest to one level are a run of the sorted group, and its count and sum come from
prefix sums at L - 1 thresholds: that costs O(L log g) per group, where visiting every weight costs
O(g L).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qbench.methods.levels import level_signs, midpoints
from qbench.methods.native import loops


class SortedGroups(NamedTuple):
    """Groups sorted once, with prefix sums, for repeated assignment to levels.

    sorted (rows, g) float32: ascending. All others are float64, and every weight counts in them by
    its importance: prefix (rows, g + 1), the sums of the first weights, from 0; energy (rows,), the
    sum of squares; mass (rows, g + 1), what the first weights count, None where each counts 1.
    """

    sorted: Tensor
    prefix: Tensor
    energy: Tensor
    mass: Tensor | None = None

    @classmethod
    def of(cls, W: Tensor, counts: Tensor | None = None) -> SortedGroups:
        """W (rows, g) float32; counts (rows, g) float32: what each weight counts, None for 1."""
        if counts is None:
            weights = _sorted(W)
            energy = (W * W).sum(1, dtype=torch.float64)
            return cls(weights, _sums(weights.double()), energy)
        order = _order(W)
        weights = W.gather(1, order)
        counts = counts.gather(1, order).double()
        energy = (counts * weights.double().square()).sum(1)
        return cls(weights, _sums(counts * weights), energy, _sums(counts))

    def take(self, rows: Tensor) -> SortedGroups:
        """Only these rows, by indices."""
        mass = None if self.mass is None else self.mass[rows]
        return SortedGroups(self.sorted[rows], self.prefix[rows], self.energy[rows], mass)

    def cells(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """What the weights nearest to each level count, and their sum, (rows, L) float64 each.

        levels: (rows, L), ascending.
        """
        if loops.here(self.sorted):
            return loops.cells(self.sorted, midpoints(levels).float(), self.mass, self.prefix)
        ends = self.ends(levels)
        before = ends.double() if self.mass is None else self.mass.gather(1, ends)
        count = before.diff(dim=1)
        total = self.prefix.gather(1, ends).diff(dim=1)  # the sum of a run, from prefix sums
        return count, total

    def error(self, alpha: Tensor, shift: Tensor) -> Tensor:
        """(rows,) float64: the squared error of the nearest levels of a coding.

        alpha (rows, b) and shift (rows,), float64.
        """
        signs = level_signs(alpha.shape[1], alpha.device)
        levels = torch.addmm(shift[:, None], alpha, signs.T).sort(1).values  # (rows, L)
        return self.error_of_cells(levels, *self.cells(levels))

    def error_of_cells(self, levels: Tensor, count: Tensor, total: Tensor) -> Tensor:
        """(rows,): sum (w - v)^2 of levels v (rows, L), by `cells`."""
        # over the cell of a level v: sum w^2 - 2 v total + count v^2
        return self.energy + (levels * (count * levels - 2 * total)).sum(1)

    def ends(self, levels: Tensor) -> Tensor:
        """(rows, L + 1): where the cells of the levels begin and end in the sorted group."""
        ends = torch.searchsorted(self.sorted, midpoints(levels).float())  # (rows, L - 1)
        ends = torch.nn.functional.pad(ends, (1, 1))  # 0, the L - 1 thresholds, g
        ends[:, -1] = self.sorted.shape[1]
        return ends


def _sorted(W: Tensor) -> Tensor:
    """W (rows, g) with every row ascending."""
    if W.device.type != "cpu":
        return W.sort(1).values
    # numpy's sort is vectorized, and ten times as fast as torch's for rows this short. Of columns
    # side by side it would keep that order.
    return torch.from_numpy(np.sort(W.contiguous().numpy(), axis=1))


def _order(W: Tensor) -> Tensor:
    """(rows, g) int64: the indices that sort the rows of W (rows, g)."""
    if W.device.type != "cpu":
        return W.argsort(1)
    return torch.from_numpy(np.argsort(W.numpy(), axis=1))


def _sums(numbers: Tensor) -> Tensor:
    """(rows, g + 1): the sums of the first numbers of each row (rows, g), from 0."""
    return torch.nn.functional.pad(numbers.cumsum(1), (1, 0))
