"""Alternating binary coding, with a shift, several starts, and the best kept per group.

Xu et al. 2018, Alternating Multi-bit Quantization for Recurrent Neural Networks, arXiv:1802.00150,
algorithm 2: alternate between least squares for the scales and nearest levels for the codes. Both
steps lower the squared error.

Each group is sorted once (`sorted_groups.py`), so that a round costs O(L log g) per group. Where
scales are stored as integers, they are fitted among those that can be stored (`storable.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from qbench.contracts import Scheme
from qbench.errors import require_at_least
from qbench.formats import Binary, RotatedBinary
from qbench.formats.rotated_binary import rotated
from qbench.formats.snapping import check_scale_bits
from qbench.formats.stepped import values
from qbench.methods.greedy import greedy_planes, solve_positive
from qbench.methods.grids import TINY, grid_error, row_slices, where_rows, zero_as_float
from qbench.methods.levels import Coding, level_signs, nearest_planes
from qbench.methods.native import loops
from qbench.methods.rotation import input_signs
from qbench.methods.rtn import RTN
from qbench.methods.sorted_groups import SortedGroups
from qbench.methods.storable import storable_coding

TRIAL = 3  # rounds from every greedy start before the best ones go on alone
FINALISTS = 2  # greedy starts that go on
OFFSETS = (0.0, -0.6, -0.3, 0.3, 0.6)  # of the centres of greedy starts, in standard deviations
CHUNK = 1 << 20  # weights at a time on a CPU: bounds the temporaries


class Fit(NamedTuple):
    """A coding with its squared error, float64: error, shift (rows,), alpha (rows, b)."""

    error: Tensor
    alpha: Tensor
    shift: Tensor


@dataclass(frozen=True)
class Alternating:
    """Binary coding by alternating minimization.

    It starts from greedy codings about several centres, and from the clip-searched uniform grid.
    Because of the latter, the squared error is never above that of `rtn` before the numbers are
    rounded for storage.

    rounds: at most so many least-squares steps from each start, beside one at the end; a greedy
        start has one at the end of its trial, too.
    shift: also fit an offset per group.
    scale_bits: of scales and shifts, see `qbench.formats.snapping`; 16 is half precision.
    rotate: code the weight for rotated inputs (`rotation.py`).
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
    scale_bits: int = 16
    rotate: bool = False

    def __post_init__(self) -> None:
        require_at_least("rounds", self.rounds, 0)
        check_scale_bits(self.scale_bits)

    def quantize_weight(self, weight: Tensor, scheme: Scheme) -> Binary | RotatedBinary:
        """weight (out, in), floating: -> its coding, `RotatedBinary` where it is to be rotated.

        The planes are the nearest levels of the coding as it is stored.
        """
        if self.rotate:
            s = input_signs(weight)
            return RotatedBinary.from_coding(self._coded(rotated(weight.float(), s), scheme), s)
        return self._coded(weight, scheme)

    def _coded(self, weight: Tensor, scheme: Scheme) -> Binary:
        out = weight.shape[0]
        group = scheme.group_length(weight.shape[1])
        rows = weight.float().reshape(-1, group)  # (out * groups, g)
        chunks = [self.fits(rows[part], scheme.bits) for part in row_slices(rows, CHUNK)]
        codings = []
        for fits in zip(*chunks, strict=True):  # the chunks of one coding
            alphas, shifts = (torch.cat(column) for column in zip(*fits, strict=True))
            codings.append((alphas.view(out, -1, scheme.bits), shifts.view(out, -1)))
        weight_rows = rows.view(weight.shape)
        scales, offsets = storable_coding(weight_rows, codings, self.scale_bits, self.shift)
        alpha = values(scales).float().flatten(0, 1)
        shift = torch.zeros_like(alpha[:, 0]) if offsets is None else values(offsets).flatten()
        planes = nearest_planes(rows, alpha, shift.float())  # (b, out * groups, g)
        return Binary.from_planes(planes.view(scheme.bits, *weight.shape), scales, offsets)

    def fit(self, W: Tensor, bits: int) -> Coding:
        """W (rows, g) float32: -> the best coding of each row, alpha descending, float32."""
        return self.fits(W, bits)[0]

    def fits(self, W: Tensor, bits: int) -> tuple[Coding, ...]:
        """The coding of `fit`, and that from the uniform grid, whose alphas are nearly halves."""
        group = SortedGroups.of(W)
        best = self._from_greedy(group, W, bits)
        if bits == 1:
            return (_descending(best),)
        # Without a trial, which would drop it: it improves most slowly.
        alpha, shift = uniform_start(W, bits)
        shift = shift if self.shift else torch.zeros_like(shift)
        uniform = alternate(group, alpha, shift, self.rounds, self.shift)
        return _descending(_better(best, uniform)), _descending(uniform)

    def _from_greedy(self, group: SortedGroups, W: Tensor, bits: int) -> Fit:
        """The best of the greedy codings about several centres; about zero alone without a shift.

        All get TRIAL rounds, and the FINALISTS of each row the remaining ones.
        """
        trial = min(self.rounds, TRIAL)
        trials = []
        for offset in OFFSETS if self.shift and bits > 1 else (0.0,):
            centre = W.std(1, correction=0) * offset
            _, alpha, shift = greedy_planes(W - centre[:, None], bits, self.shift, refine=False)
            trials.append(alternate(group, alpha, shift + centre, trial, self.shift))
        fits = Fit(*map(torch.stack, zip(*trials, strict=True)))
        rows = torch.arange(len(W), device=W.device)
        finished = []
        for start in fits.error.argsort(dim=0, stable=True)[:FINALISTS]:  # (rows,)
            _, alpha, shift = (part[start, rows] for part in fits)
            finished.append(alternate(group, alpha, shift, self.rounds - trial, self.shift))
        return reduce(_better, finished)


def uniform_start(W: Tensor, bits: int, importance: Tensor | None = None) -> Coding:
    """The better of two clip-searched uniform grids (s, z) of W (rows, g), as a binary coding.

    importance (rows, g): what an error of each weight counts, None for 1. One grid has integer and
    one has real zero points. The levels s (k - z), k in 0 .. 2^b - 1, are those of
    alpha_i = s 2^(b-1-i), i = 1 .. b, and shift = s (h - z), h = (2^b - 1)/2.
    """
    scheme = Scheme(bits)
    h = (2**bits - 1) / 2
    least = torch.full_like(W[:, 0], torch.inf)
    scale = torch.zeros_like(least)
    shift = torch.zeros_like(least)
    for method in (RTN(), RTN(zero_point="real")):
        stored_scale, stored_zero = method.grid(W, scheme, importance)
        s = stored_scale.float()
        z = zero_as_float(stored_scale, stored_zero, bits)
        # The stored scale may have become zero, and the error divides by it.
        error = grid_error(W, s.clamp_min(TINY), z, bits, 2.0, importance)
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, s, scale)
        shift = torch.where(better, s * (h - z), shift)
    # sum_i c_i 2^(b-1-i) runs through k - h, k = 0 .. 2^b - 1, and s (k - z) is s (k - h) +
    # s (h - z).
    places = 2.0 ** torch.arange(bits - 2, -2, -1, device=W.device)  # 2^(b-1-i), (b,)
    return scale[:, None] * places, shift


def _descending(fit: Fit) -> Coding:
    """The coding of a fit, float32, with positive scales in descending order."""
    # -alpha_i c_i is alpha_i (-c_i): signs and order of the scales do not change the levels, from
    # which the planes are chosen afterwards.
    return fit.alpha.abs().sort(1, descending=True).values.float(), fit.shift.float()


def _better(first: Fit, second: Fit) -> Fit:
    """Of every row the one with the smaller error; `first` where they are equal."""
    return Fit(*where_rows(second.error < first.error, second, first))


def alternate(group: SortedGroups, alpha: Tensor, shift: Tensor, rounds: int, shifted: bool) -> Fit:
    """Algorithm 2.

    alpha (rows, b) and shift (rows,): the start. rounds: of least squares, at most, before the
    last step. shifted: fit the shift as well. The last step fits the scales once more, so the
    returned coding with nearest levels is at least as good as the error says. The error never rises
    with the rounds; rows that have converged are left out of the later ones.
    """
    signs = level_signs(alpha.shape[1], alpha.device)  # (L, b)
    alpha = alpha.to(torch.float64, copy=True)
    shift = shift.to(torch.float64, copy=True)
    fit = Fit(torch.full_like(shift, torch.inf), alpha, shift)
    active = _Active(torch.arange(len(shift), device=alpha.device), group, *fit)
    for _ in range(rounds + 1):
        levels, order = torch.addmm(active.shift[:, None], active.alpha, signs.T).sort(1)
        count, total = active.group.cells(levels)  # (rows, L), as levels and order
        error = active.group.error_of_cells(levels, count, total)
        # A row is at work while its error falls by more than 1e-9 of it.
        moving = error < active.error * (1 - 1e-9)
        active = active._replace(error=torch.minimum(error, active.error))
        left = moving.nonzero()[:, 0]  # waits for the device, once a round
        if not len(left):
            break
        # From the order of the values back to that of the patterns.
        count = torch.empty_like(count).scatter_(1, order, count)
        total = torch.empty_like(total).scatter_(1, order, total)
        if len(left) < 0.7 * len(active.rows):  # else selecting costs more than it saves
            active.enter(fit)
            active = active.take(left)
            count = count[left]
            total = total[left]
        alpha, shift = least_squares(count, total, signs, shifted)
        active = active._replace(alpha=alpha, shift=shift)
    active.enter(fit)
    return fit


class _Active(NamedTuple):
    """The rows of a fit that are still at work: their indices, weights, and the parts of `Fit`."""

    rows: Tensor
    group: SortedGroups
    error: Tensor
    alpha: Tensor
    shift: Tensor

    def take(self, left: Tensor) -> _Active:
        """Only those at the indices `left` among these."""
        rows, group, *parts = self
        return _Active(rows[left], group.take(left), *(part[left] for part in parts))

    def enter(self, fit: Fit) -> None:
        """Write them into the fit of all rows, in place."""
        fit.error[self.rows] = self.error
        fit.alpha[self.rows] = self.alpha
        fit.shift[self.rows] = self.shift


def least_squares(count: Tensor, total: Tensor, signs: Tensor, shifted: bool) -> Coding:
    """Scales (rows, b) and shift (rows,) that fit the cells best, float64.

    count, total (rows, L): number and sum of the weights of each level; signs (L, b). Normal
    equations C^T C theta = C^T w over the columns [1, c_1 .. c_b], whose entries are sums over
    cells: (C^T C)_jk = sum_l count_l c_lj c_lk, and (C^T w)_j = sum_l total_l c_lj.
    """
    columns = signs  # (L, k)
    if shifted:
        columns = torch.cat([torch.ones_like(signs[:, :1]), signs], 1)
    k = columns.shape[1]
    if loops.here(count, total, columns, dtype=torch.float64) and k <= loops.UNKNOWNS:
        theta = loops.least_squares(count, total, columns)
    else:
        products = columns[:, :, None] * columns[:, None, :]  # (L, k, k)
        gram = (count @ products.flatten(1)).view(-1, k, k)
        theta = solve_positive(gram, total @ columns)
    if shifted:
        return theta[:, 1:], theta[:, 0]
    return theta, torch.zeros_like(theta[:, 0])
