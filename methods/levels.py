"""The levels of binary codings, and the level nearest to each weight.

A coding of b planes has the levels shift + sum_i alpha_i c_i, c_i in {-1, +1}. A code is the
pattern of signs of one level, 0 .. L - 1 with L = 2^b: bit b - 1 - i is set where c_i is +1. The
levels of a group are held in the order of these patterns; they are in the order of their values
only where every scale is at least the sum of the later ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.methods.grids import row_slices
from qbench.methods.native import loops

CHUNK = 1 << 20  # weights at a time on a CPU: bounds the temporaries
Coding = tuple[Tensor, Tensor]  # alpha (..., b) and shift (...)


def level_signs(bits: int, device: torch.device) -> Tensor:
    """(2^b, b) float64 in {-1, +1}: row k has +1 in plane i where its bit b-1-i is set.

    Its product with scales gives all levels of a coding, in the order of the sign patterns.
    """
    index = torch.arange(2**bits, device=device)
    planes = [((index >> (bits - 1 - i)) & 1) * 2.0 - 1 for i in range(bits)]
    return torch.stack(planes, 1).double()


def levels_of(alpha: Tensor, shift: Tensor) -> Tensor:
    """All levels (..., L) float32 of alpha (..., b) and shift (...), by pattern."""
    signs = level_signs(alpha.shape[-1], alpha.device).float()  # (L, b)
    return shift.float()[..., None] + alpha.float() @ signs.T


def midpoints(levels: Tensor) -> Tensor:
    """(..., L - 1): what lies between levels (..., L), ascending."""
    return (levels[..., 1:] + levels[..., :-1]) / 2


def sorted_midpoints(levels: Tensor) -> tuple[Tensor, Tensor]:
    """The midpoints (rows, L - 1) of the sorted levels (rows, L), and the order (rows, L) int64."""
    ascending, order = levels.sort(1)
    return midpoints(ascending), order


def nearest(y: Tensor, levels: Tensor) -> Tensor:
    """Index (rows, n), int64, of the level nearest to each y, exactly.

    y (rows, n): weights. levels (rows, L): in any order, L a power of two. Bisection: b comparisons
    with the midpoints of the sorted levels, in place of 2^b distances.
    """
    return ranked(y, *sorted_midpoints(levels))


def ranked(y: Tensor, middle: Tensor, order: Tensor) -> Tensor:
    """`nearest`, once the levels are sorted: middle, order as `sorted_midpoints` gives them."""
    if loops.here(y, middle):
        return loops.ranked(y, middle, order)
    # rank: how many midpoints lie below y, bit by bit from the most significant. After each
    # comparison it lies in rank .. rank + step - 1, and midpoint rank + step - 1 halves the next
    # interval.
    step = order.shape[1] // 2
    rank = (y > middle[:, step - 1, None]).long().mul_(step)
    while step > 1:
        step //= 2
        rank += (y > middle.gather(1, rank + (step - 1))).long().mul_(step)
    return order.gather(1, rank)


def nearest_of_column(y: Tensor, levels: Tensor) -> Tensor:
    """The level (out,) nearest to each y (out,), of levels (L, out), ascending."""
    rank = (y > (levels[1:] + levels[:-1]) / 2).sum(0)  # how many midpoints lie below
    return levels.gather(0, rank[None])[0]


def nearest_planes(W: Tensor, alpha: Tensor, shift: Tensor) -> Tensor:
    """Planes bool (b, rows, g) of the level nearest to each weight.

    W (rows, g), alpha (rows, b), shift (rows,), float32.
    """
    bits = alpha.shape[1]
    planes = torch.empty((bits, *W.shape), dtype=torch.bool, device=W.device)
    for part in row_slices(W, CHUNK):
        code = nearest(W[part], levels_of(alpha[part], shift[part])).to(torch.uint8)  # (rows, g)
        for i in range(bits):
            planes[i, part] = (code >> (bits - 1 - i)) & 1 == 1
    return planes
