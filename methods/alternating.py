"""Alternating binary coding, with a shift, several starts, and the best kept per group.

Xu et al. 2018, Alternating Multi-bit Quantization for Recurrent Neural Networks, arXiv:1802.00150,
algorithm 2: alternate between least squares for the scales and nearest levels for the codes. Both
steps lower the squared error.

Each group is sorted once. Then the weights nearest to one level are a run of the sorted group, and
its count and sum come from prefix sums at L - 1 thresholds: a round costs O(L log g) per group,
where visiting every weight costs O(g L).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from qbench.contracts import Scheme
from qbench.formats import Binary
from qbench.formats.packing import as_stored
from qbench.methods.greedy import greedy_planes, solve_positive
from qbench.methods.rtn import RTN, TINY, grid_error

TRIAL = 2  # rounds from every start before the best one goes on alone
CHUNK = 1 << 20  # weights at a time: bounds the temporaries
Coding = tuple[Tensor, Tensor]  # alpha (rows, bits) and shift (rows,)


@dataclass(frozen=True)
class Alternating:
    """Binary coding by alternating minimization.

    rounds: at most so many least-squares steps from each start. shift: also fit an offset per
    group. The starts are the clip-searched uniform grid, so that the squared error is never above
    that of `rtn`, and greedy coding.
    """

    name: ClassVar[str] = "alternating"
    paper: ClassVar[str] = (
        "Xu et al., Alternating Multi-bit Quantization, ICLR 2018, arXiv:1802.00150"
    )
    format: ClassVar[str] = "binary"
    bits: ClassVar[tuple[int, int]] = (1, 6)
    symmetric: ClassVar[bool] = False

    rounds: int = 15
    shift: bool = True

    def quantize_weight(self, weight: Tensor, scheme: Scheme) -> Binary:
        """(out, in) -> Binary; the planes are the nearest levels of the coding as it is stored."""
        group = scheme.group_length(weight.shape[1])
        rows = weight.float().reshape(-1, group)
        fitted = [self.fit(chunk, scheme.bits) for chunk in rows.split(max(1, CHUNK // group))]
        alpha = as_stored(torch.cat([alpha for alpha, _ in fitted]))
        shift = as_stored(torch.cat([shift for _, shift in fitted]))
        planes = nearest_planes(rows, alpha.float(), shift.float()).view(scheme.bits, *weight.shape)
        groups = (weight.shape[0], -1)
        return Binary.from_planes(
            planes, alpha.view(*groups, scheme.bits), shift.view(groups) if self.shift else None
        )

    def fit(self, W: Tensor, bits: int) -> Coding:
        """(rows, g) float32 -> the best coding found per row, alpha descending, float32."""
        group = SortedGroups(W)
        starts = [greedy_planes(W, bits, self.shift, refine=False)[1:]]
        if bits > 1:
            starts.append(self._uniform_start(W, bits))
        trial = min(self.rounds, TRIAL)
        error, alpha, shift = alternate(group, *starts[0], trial, self.shift)
        for start in starts[1:]:
            other = alternate(group, *start, trial, self.shift)
            better = other[0] < error
            alpha, shift = (
                torch.where(better[:, None], other[1], alpha),
                torch.where(better, other[2], shift),
            )
        _, alpha, shift = alternate(group, alpha, shift, self.rounds - trial, self.shift)
        return alpha.abs().sort(1, descending=True).values.float(), shift.float()

    def _uniform_start(self, W: Tensor, bits: int) -> Coding:
        """The better of two clip-searched uniform grids (s, z) per group, with integer and with real zero points.

        Its levels are those of alpha_i = s 2^(b-1-i), shift = s (h - z), with h = (2^b - 1)/2.
        """
        scheme, h = Scheme(bits), (2**bits - 1) / 2
        error = torch.full_like(W[:, 0], torch.inf)
        scale = shift = torch.zeros_like(error)
        for method in (RTN(), RTN(zero_point="real")):
            s, z = (
                parameter.float() for parameter in method.grid(W, scheme) if parameter is not None
            )
            now = grid_error(W, s.clamp_min(TINY), z, bits, 2.0)
            better = now < error
            error, scale, shift = (
                torch.where(better, new, old)
                for new, old in ((now, error), (s, scale), (s * (h - z), shift))
            )
        alpha = scale[:, None] * 2.0 ** torch.arange(bits - 2, -2, -1, device=W.device)
        return alpha, shift if self.shift else torch.zeros_like(shift)


class SortedGroups:
    """Groups sorted once, with prefix sums, for repeated assignment to levels."""

    def __init__(self, W: Tensor) -> None:
        """W: (rows, g) float32."""
        # On the CPU numpy's sort is vectorized, and ten times as fast as torch's for rows this
        # short.
        self.sorted = (
            torch.from_numpy(np.sort(W.numpy(), axis=1))
            if W.device.type == "cpu"
            else W.sort(1).values
        )
        self.prefix = torch.nn.functional.pad(
            self.sorted.double().cumsum(1), (1, 0)
        )  # (rows, g + 1)
        self.energy = (W * W).sum(1, dtype=torch.float64)

    def take(self, rows: Tensor) -> SortedGroups:
        """Only these rows."""
        part = object.__new__(SortedGroups)
        part.sorted, part.prefix, part.energy = (
            self.sorted[rows],
            self.prefix[rows],
            self.energy[rows],
        )
        return part

    def cells(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Ascending levels (rows, L) -> per level, the number and the sum of the weights nearest to it, float64."""
        middle = ((levels[:, 1:] + levels[:, :-1]) / 2).float()
        ends = torch.searchsorted(self.sorted, middle)  # (rows, L - 1)
        ends = torch.nn.functional.pad(ends, (1, 1))
        ends[:, -1] = self.sorted.shape[1]
        return ends.diff(dim=1).double(), self.prefix.gather(1, ends).diff(dim=1)


def alternate(
    group: SortedGroups, alpha: Tensor, shift: Tensor, rounds: int, shifted: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Alternate from (alpha, shift); returns the squared error (rows,), alpha (rows, b) and shift (rows,), float64.

    The last step fits the scales once more, so the returned coding with nearest levels is at least
    as good as the error says. The error never rises with the rounds; converged rows are left out.
    """
    signs = level_signs(alpha.shape[1], alpha.device)
    alpha, shift = alpha.to(torch.float64, copy=True), shift.to(torch.float64, copy=True)
    error = torch.full_like(shift, torch.inf)
    active, a, s, e, part = (
        torch.arange(len(shift), device=alpha.device),
        alpha,
        shift,
        error,
        group,
    )
    for _ in range(rounds + 1):
        levels, order = torch.addmm(s[:, None], a, signs.T).sort(1)  # (rows, L)
        count, total = part.cells(levels)
        now = part.energy + (levels * (count * levels - 2 * total)).sum(
            1
        )  # sum w^2 - 2 v m + n v^2
        moving = now < e * (1 - 1e-9)
        e = torch.minimum(now, e)
        if not moving.any():
            break
        count, total = (
            torch.empty_like(count).scatter_(1, order, count),
            torch.empty_like(total).scatter_(1, order, total),
        )
        if moving.sum() < 0.7 * len(active):
            alpha[active], shift[active], error[active] = a, s, e
            active, part, e = active[moving], part.take(moving), e[moving]
            count, total = count[moving], total[moving]
        a, s = least_squares(count, total, signs, shifted)
    alpha[active], shift[active], error[active] = a, s, e
    return error, alpha, shift


def level_signs(bits: int, device: torch.device) -> Tensor:
    """(2^b, b) float64 in {-1, +1}: row k has + in plane i where bit b-1-i of k is set."""
    index = torch.arange(2**bits, device=device)
    return torch.stack([((index >> (bits - 1 - i)) & 1) * 2.0 - 1 for i in range(bits)], 1).double()


def least_squares(count: Tensor, total: Tensor, signs: Tensor, shifted: bool) -> Coding:
    """Scales and shift that fit the cells best: (rows, L) counts and sums -> alpha (rows, b), shift (rows,).

    Normal equations C^T C theta = C^T w over the columns [1, c_1 .. c_b], whose entries are sums
    over cells.
    """
    columns = torch.cat([torch.ones_like(signs[:, :1]), signs], 1) if shifted else signs  # (L, k)
    k = columns.shape[1]
    gram = (count @ (columns[:, :, None] * columns[:, None, :]).flatten(1)).view(-1, k, k)
    theta = solve_positive(gram, total @ columns)
    return (theta[:, 1:], theta[:, 0]) if shifted else (theta, torch.zeros_like(theta[:, 0]))


def nearest_planes(W: Tensor, alpha: Tensor, shift: Tensor) -> Tensor:
    """Planes of the nearest level: (rows, g), alpha (rows, b), shift (rows,), float32 -> bool (b, rows, g)."""
    bits = alpha.shape[1]
    planes = torch.empty((bits, *W.shape), dtype=torch.bool, device=W.device)
    for start in range(0, len(W), max(1, CHUNK // W.shape[1])):
        part = slice(start, start + max(1, CHUNK // W.shape[1]))
        levels, order = (
            shift[part, None] + alpha[part] @ level_signs(bits, W.device).float().T
        ).sort(1)
        middle = (levels[:, 1:] + levels[:, :-1]) / 2
        code = order.to(torch.uint8).gather(1, torch.searchsorted(middle, W[part].contiguous()))
        for i in range(bits):
            planes[i, part] = (code >> (bits - 1 - i)) & 1 == 1
    return planes
