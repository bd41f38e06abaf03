"""Binary coding under the curvature of a layer's loss: levels, and error feedback onto them.

With H = 2/n sum x x^T over a layer's inputs, moving its weight by dw raises the mean squared output
by dw H dw^T / 2 a row. Three steps use that, none of which trains anything:

- `weighted_levels`: alternating coding (`alternating.py`) in which an error of input j counts H_jj
  plus damping, so that the levels lie where the large inputs have their weights;
- `feed_back`: the columns go to their nearest levels in the order of decreasing H_jj, and those
  still to come take in each rounding error (`error_feedback.py`; it holds for any levels);
- `curvature_refinement.py` fits levels and codes to each other under the whole of H.

It ends with compensated values: what each weight should have been when its level was chosen. Their
nearest levels are the codes, so that a method that maps values to levels can start from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qbench.calibration.recorded import in_place
from qbench.contracts import LinearStats, Scheme
from qbench.formats.stepped import Numbers, values
from qbench.methods.alternating import alternate, uniform_start
from qbench.methods.curvature_refinement import descend, refit
from qbench.methods.error_feedback import importance, inverse_cholesky, live_hessian
from qbench.methods.grids import row_slices, rows_of
from qbench.methods.levels import Coding, levels_of, nearest, nearest_of_column
from qbench.methods.native import loops
from qbench.methods.sorted_groups import SortedGroups
from qbench.methods.stored_numbers import stored_numbers

CHUNK = 1 << 20  # weights fitted at a time on a CPU: bounds the temporaries
BLOCK = 128  # columns between two large updates; the result does not depend on it


@dataclass(frozen=True)
class CurvatureCoding:
    """How `curvature_start` fits: see there.

    rounds: of least squares, at most, beside one at the end. refits: of levels and codes to each
    other under the whole Hessian. damp: added to the diagonal of H, as a fraction of its mean.
    scale_bits: of the numbers that are stored, as `stored_coding` takes them.
    """

    rounds: int = 8
    refits: int = 0
    damp: float = 0.05
    scale_bits: int = 16


class CurvatureStart(NamedTuple):
    """What the curvature makes of a weight (out, in), before any training.

    alpha (out, groups, b) and shift (out, groups), as they are to be stored. values (out, in)
    float32: the compensated weights. loss (out,): dw H dw^T of each row, H damped.
    """

    alpha: Numbers
    shift: Numbers
    values: Tensor
    loss: Tensor

    def levels(self) -> Tensor:
        """(out, groups, L), in the order of the patterns of signs."""
        return levels_of(values(self.alpha), values(self.shift))


def curvature_start(
    weight: Tensor, stats: LinearStats | None, scheme: Scheme, coding: CurvatureCoding
) -> CurvatureStart:
    """Levels for weight (out, in), snapped to what is stored, and feedback onto these.

    stats: of the layer's inputs; None takes them as white, of the same size and independent.
    MethodError where no damping makes the Hessian positive definite.
    """
    out, columns = weight.shape
    group = scheme.group_length(columns)
    W = weight.float()
    H = torch.eye(columns, device=W.device) if stats is None else live_hessian(stats)
    weights = importance(H, coding.damp).view(-1, group)  # (groups, g)
    alpha, shift = weighted_levels(W.reshape(-1, group), weights, scheme.bits, coding.rounds)
    alpha = alpha.view(out, -1, scheme.bits)
    shift = shift.view(out, -1)
    order = H.diagonal().argsort(descending=True, stable=True)
    U = inverse_cholesky(H[order][:, order], coding.damp)
    numbers = stored_numbers(alpha, shift, coding.scale_bits, weights.sum(1))
    levels = levels_of(values(numbers[0]), values(numbers[1]))
    best = CurvatureStart(*numbers, *feed_back(W, U, levels.sort(2).values, order))
    H.diagonal().copy_(weights.flatten())  # damped
    for _ in range(coding.refits):
        codes = nearest_codes(best.values, best.levels())
        fitted = refit(W, H, codes, scheme.bits)
        alpha = torch.where(fitted[0].isnan(), alpha, fitted[0])
        shift = torch.where(fitted[1].isnan(), shift, fitted[1])
        numbers = stored_numbers(alpha, shift, coding.scale_bits, weights.sum(1))
        levels = levels_of(values(numbers[0]), values(numbers[1])).sort(2).values
        compensated, _ = feed_back(W, U, levels, order)
        targets, V = descend(W, H, levels, nearest_levels(compensated, levels))
        change = V - W
        loss = ((change @ H) * change).sum(1)
        if not loss.sum() < best.loss.sum():
            break
        best = CurvatureStart(*numbers, targets, loss)
    return best


def nearest_codes(W: Tensor, levels: Tensor) -> Tensor:
    """Patterns (out, groups, g) int64 of the levels (out, groups, L) nearest to W (out, in)."""
    grouped = W.unflatten(1, (levels.shape[1], -1))  # (out, groups, g)
    return nearest(grouped.flatten(0, 1), levels.flatten(0, 1)).view(grouped.shape)


def nearest_levels(W: Tensor, levels: Tensor) -> Tensor:
    """The levels (out, in) nearest to W (out, in), of levels (out, groups, L)."""
    return levels.gather(2, nearest_codes(W, levels)).flatten(1)


def weighted_levels(W: Tensor, weights: Tensor, bits: int, rounds: int) -> Coding:
    """alpha (rows, b), descending, and shift (rows,), float32, of W (rows, g) float32.

    weights (groups, g): what an error counts in each group, row r being of group r % groups; not
    negative, and not all zero in a group. The least sum of weights * error^2 that alternating finds
    from the better of two uniform grids, which themselves are searched by that sum.
    """
    alphas = []
    shifts = []
    for part in row_slices(W, CHUNK):
        X = W[part]
        F = rows_of(weights, part, len(W))
        assert F is not None
        # In units of the group's mean: a small group's normal equations are as well scaled.
        F = F / F.mean(1, keepdim=True)
        alpha, shift = uniform_start(X, bits, F)
        _, fitted, moved = alternate(SortedGroups.of(X, F), alpha, shift, rounds, True)
        alphas.append(fitted.abs().sort(1, descending=True).values.float())
        shifts.append(moved.float())
    return torch.cat(alphas), torch.cat(shifts)


def feed_back(W: Tensor, U: Tensor, levels: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Compensated values (out, in) of W (out, in), and the loss (out,) of their nearest levels.

    U (in, in) upper with H^-1 = U^T U, rows and columns of H in the order of processing; order
    (in,): the column that is processed at each place. levels (out, groups, L) ascending. The loss
    is dw H dw^T of each row, with H damped as it was for U. All float32.
    """
    n = W.shape[1]
    group_of = order // (n // levels.shape[1])  # (in,)
    WT = W.T[order].contiguous()  # (in, out): a column of the weight is contiguous
    tables = levels.permute(1, 2, 0).contiguous()  # (groups, L, out)
    loss = torch.zeros_like(WT[0])
    for start in range(0, n, BLOCK):
        here = slice(start, min(start + BLOCK, n))
        errors = torch.empty_like(WT[here])
        read = (U[here, here], tables, group_of[here])
        changed = (WT[here], errors)
        if loops.here(U, tables, WT) and tables.shape[1] <= loops.LEVELS:
            loops.feed_back_block(*read, *changed)
        else:
            in_place(feed_back_block, read, changed)
        WT[here.stop :].addmm_(U[here, here.stop :].T, errors, alpha=-1)
        loss += errors.square_().sum(0)
    compensated = torch.empty_like(W)
    compensated[:, order] = WT.T
    return compensated, loss


def feed_back_block(U: Tensor, tables: Tensor, group_of: Tensor, W: Tensor, errors: Tensor) -> None:
    """Round the columns of a block to their levels, and enter their errors.

    U (columns, columns); tables (groups, L, out); group_of (columns,); W, errors (columns, out). W
    takes in the errors of earlier columns, in place, and so ends as the compensated values.
    """
    diagonal = U.diagonal()
    group_of = group_of % len(tables)  # a GPU records this on ones, which may be no group
    for i in range(len(W)):
        levels = tables.index_select(0, group_of[i : i + 1])[0]  # (L, out)
        e = errors[i]
        torch.sub(W[i], nearest_of_column(W[i], levels), out=e).div_(diagonal[i])
        W[i + 1 :].addr_(U[i, i + 1 :], e, alpha=-1)  # w_j -= e U_ij
