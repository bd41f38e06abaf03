"""Levels and codes under the whole Hessian: each fitted to the other, as they are.

A weight's loss is dw H dw^T a row. `refit` gives the scales and shifts of all groups of a row that
are best for its codes, one linear system a row; `descend` gives every column in turn the level that
is best for the present rest, coordinate descent. Neither raises the loss, where the numbers are not
rounded in between. The two steps are those of LNQ (GuidedQuant, arXiv:2505.07004), which has free
levels for a whole row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.calibration.recorded import in_place
from qbench.methods.levels import Coding, level_signs, nearest_of_column

RIDGE = 1e-6  # of the mean diagonal of a row's system, which is singular where two planes agree
SYSTEMS = 1 << 22  # entries of the systems that are solved at a time
BLOCK = 128  # columns between two large updates; the result does not depend on it


def refit(W: Tensor, H: Tensor, codes: Tensor, bits: int) -> Coding:
    """alpha (out, groups, b), descending, and shift (out, groups), best for these codes.

    W (out, in) and H (in, in), damped, float32; codes (out, groups, g) integers, patterns of signs
    as in `level_signs`. With the columns C of a row's 1 and c_1 .. c_b in each group, theta is the
    solution of C^T H C theta = C^T H w. NaN where a row's system is not positive definite.
    """
    out, groups, _ = codes.shape
    k = groups * (bits + 1)
    signs = level_signs(bits, W.device).float()
    table = torch.cat([signs, torch.ones_like(signs[:, :1])], 1)  # (L, b + 1)
    pulled = (W @ H).unflatten(1, (groups, -1))  # (out, groups, g)
    alphas = []
    shifts = []
    for rows in torch.arange(out, device=W.device).split(max(1, SYSTEMS // k**2)):
        C = table[codes[rows].long()]  # (rows, groups, g, b + 1)
        A = gram(C, H).double()
        right = torch.einsum("rgjc,rgj->rgc", C, pulled[rows]).flatten(1).double()
        A.diagonal(dim1=1, dim2=2).add_(RIDGE * A.diagonal(dim1=1, dim2=2).mean(1, True))
        lower, failed = torch.linalg.cholesky_ex(A)
        theta = torch.cholesky_solve(right[..., None], lower)[..., 0]
        theta = torch.where((failed == 0)[:, None], theta, torch.nan).float()
        theta = theta.unflatten(1, (groups, bits + 1))
        alphas.append(theta[..., :bits].abs().sort(2, descending=True).values)
        shifts.append(theta[..., bits])
    return torch.cat(alphas), torch.cat(shifts)


def gram(C: Tensor, H: Tensor) -> Tensor:
    """C^T H C (rows, groups k, groups k) of columns C (rows, groups, g, k), zero elsewhere."""
    rows, groups, g, k = C.shape
    tiles = H.view(groups, g, groups, g)
    flat = C.permute(1, 2, 0, 3).reshape(groups, g, rows * k)
    A = H.new_zeros(rows, groups, k, groups, k)
    for i in range(groups):
        # Row of tiles i times the columns of groups i .. : what is left of it follows by symmetry.
        products = tiles[i, :, i:].transpose(0, 1) @ flat[i:]  # (groups - i, g, rows * k)
        products = products.unflatten(2, (rows, k)).permute(2, 1, 0, 3).flatten(2)
        part = (C[:, i].mT @ products).unflatten(2, (groups - i, k))  # (rows, k, groups - i, k)
        A[:, i, :, i:] = part
        A[:, i:, :, i] = part.permute(0, 2, 3, 1)
    return A.view(rows, groups * k, groups * k)


def descend(W: Tensor, H: Tensor, levels: Tensor, V: Tensor) -> tuple[Tensor, Tensor]:
    """One sweep over the columns: targets (out, in), and the levels nearest to them.

    W, V (out, in): the weight, and the levels it has at first; H (in, in), damped; levels (out,
    groups, L) ascending. The loss in one weight of column j, all others fixed, is least at its
    target v_j - ((v - w) H)_j / H_jj. All float32.
    """
    n = W.shape[1]
    tables = levels.permute(1, 2, 0).contiguous()  # (groups, L, out)
    group_of = torch.arange(n, device=W.device) // (n // levels.shape[1])
    VT = V.T.clone(memory_format=torch.contiguous_format)  # (in, out)
    pull = H @ (VT - W.T)  # H dw, kept for the levels as they are
    targets = torch.empty_like(VT)
    for start in range(0, n, BLOCK):
        here = slice(start, min(start + BLOCK, n))
        moved = torch.empty_like(VT[here])
        read = (H[here, here], tables, group_of[here])
        in_place(descend_block, read, (VT[here], pull[here], targets[here], moved))
        pull[here.stop :].addmm_(H[here.stop :, here], moved)
    return targets.T.contiguous(), VT.T.contiguous()


def descend_block(
    H: Tensor,
    tables: Tensor,
    group_of: Tensor,
    V: Tensor,
    pull: Tensor,
    targets: Tensor,
    moved: Tensor,
) -> None:
    """A sweep over the columns of a block, in place.

    H (columns, columns); tables (groups, L, out); group_of (columns,); all others (columns, out).
    """
    diagonal = H.diagonal()
    group_of = group_of % len(tables)  # a GPU records this on ones, which may be no group
    for i in range(len(V)):
        torch.sub(V[i], pull[i] / diagonal[i], out=targets[i])
        levels = tables.index_select(0, group_of[i : i + 1])[0]  # (L, out)
        best = nearest_of_column(targets[i], levels)
        torch.sub(best, V[i], out=moved[i])
        V[i] = best
        pull.addr_(H[:, i], moved[i])
