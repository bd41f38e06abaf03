"""Round-to-nearest (RTN), the baseline every paper compares with, with a clip search.

Notation follows Frantar et al. 2022 (GPTQ, arXiv:2210.17323), section 2: W weight, q codes, s
scale, z zero point; the clip search is that of its code (`mse=True`): shrink the min-max range by a
ratio r and keep the best per group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qbench.contracts import Scheme
from qbench.errors import ConfigError
from qbench.formats import Uniform
from qbench.formats.packing import as_stored

# Scale and zero point; None is the midpoint of a symmetric grid.
Grid = tuple[Tensor, Tensor | None]
CHUNK = 1 << 18  # weights searched at a time: their temporaries stay in the processor's cache
GPU_CHUNK = 1 << 25  # weights at a time elsewhere: few launches, and temporaries of 128 MB
TINY = 1e-12  # a group of zeros has a zero range


@dataclass(frozen=True)
class RTN:
    """Round each weight to the nearest point of its group's grid.

    clip: `search` shrinks the range where that lowers the mean |error|^norm, `none` keeps the
    minimum and maximum. zero_point: `integer` (stored in `bits` bits) or `real` (float16). The
    search tries `ratios` shrink ratios evenly from 1 down to min_ratio, and then, `refinements`
    times, both neighbours of the best at half the distance.
    """

    name: ClassVar[str] = "rtn"
    paper: ClassVar[str] = (
        "Round-to-nearest; grid and clip search of GPTQ, "
        "Frantar et al., ICLR 2023, arXiv:2210.17323"
    )
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True

    clip: Literal["search", "none"] = "search"
    zero_point: Literal["integer", "real"] = "integer"
    norm: float = 2.0
    ratios: int = 5
    refinements: int = 2
    min_ratio: float = 0.4

    def __post_init__(self) -> None:
        if not self.norm > 0:
            raise ConfigError(f"norm={self.norm}: give more than 0; 2 is the squared error")
        if self.ratios < 1 or self.refinements < 0:
            raise ConfigError(
                f"ratios={self.ratios}, refinements={self.refinements}: "
                "give 1 or more ratios, and 0 or more refinements"
            )
        if not 0 < self.min_ratio <= 1:
            raise ConfigError(f"min_ratio={self.min_ratio}: give a share of the range, within 0..1")

    def quantize_weight(self, weight: Tensor, scheme: Scheme) -> Uniform:
        """weight (out, in), floating: -> Uniform, its codes rounded to the grid as it is stored."""
        group = scheme.group_length(weight.shape[1])
        W = weight.float().unflatten(1, (-1, group))  # (out, groups, g)
        s, z = self.grid(W, scheme)  # (out, groups) each
        codes = round_to_grid(W, s, z, scheme.bits).flatten(1)  # (out, in)
        return Uniform.from_codes(codes, s, z, scheme.bits)

    def grid(self, W: Tensor, scheme: Scheme, importance: Tensor | None = None) -> Grid:
        """W (..., g) float32: -> scale and zero point (...), in the dtypes they are stored in.

        importance (groups, g) float32, not negative: what an error of each input counts in the
        search, for W (..., groups, g). None counts all alike.
        """
        rows = W.reshape(-1, W.shape[-1])
        scales = []
        zeros = []
        for part in row_slices(rows, CHUNK):
            s, z = self._search(rows[part], scheme, rows_of(importance, part, len(rows)))
            scales.append(s)
            zeros.append(z)
        scale = torch.cat(scales).view(W.shape[:-1])
        if scheme.symmetric:
            return as_stored(scale), None
        zero = torch.cat(zeros).view(W.shape[:-1])
        return as_stored(scale), stored_zero(zero, self.zero_point == "integer")

    def _search(
        self, W: Tensor, scheme: Scheme, importance: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """W (rows, g): -> scale and zero point (rows,), float32, with the least error of the group.

        importance: (rows, g), or None. Coarse to fine: `ratios` shrink ratios for all rows, then
        both neighbours of each row's best at half the distance, `refinements` times.
        """
        integer = self.zero_point == "integer"
        low, high = weight_range(W, scheme.symmetric, integer)
        s, z = range_grid(low, high, scheme, 1.0, integer)
        if self.clip == "none":
            return s, z
        least = torch.full_like(s, torch.inf)
        best_ratio = torch.ones_like(s)
        step = (1 - self.min_ratio) / max(1, self.ratios - 1)
        trials = [torch.full_like(s, 1 - step * i) for i in range(self.ratios)]
        for halving in range(self.refinements + 1):
            for ratio in trials:  # (rows,)
                scale, zero = range_grid(low, high, scheme, ratio, integer)
                error = grid_error(W, scale, zero, scheme.bits, self.norm, importance)
                better = error < least
                least = torch.where(better, error, least)
                best_ratio = torch.where(better, ratio, best_ratio)
                s = torch.where(better, scale, s)
                z = torch.where(better, zero, z)
            finer = step / 2 ** (halving + 1)
            trials = [(best_ratio + finer).clamp_max(1), best_ratio - finer]
        return s, z


def rows_of(importance: Tensor | None, part: slice, rows: int) -> Tensor | None:
    """Of importance (groups, g), that of the rows `part` of (out * groups, g), out * groups = rows.

    Row r belongs to group r % groups.
    """
    if importance is None:
        return None
    start, stop, _ = part.indices(rows)
    return importance[torch.arange(start, stop, device=importance.device) % len(importance)]


def row_slices(X: Tensor, weights: int) -> Iterator[slice]:
    """Slices of the rows of X (rows, g): of so many weights on a CPU, of `GPU_CHUNK` elsewhere."""
    if X.device.type != "cpu":
        weights = GPU_CHUNK
    step = max(1, weights // X.shape[1])
    for start in range(0, len(X), step):
        yield slice(start, start + step)


def stored_zero(zero: Tensor, integer: bool) -> Tensor:
    """A zero point, float32, in the dtype it is stored in: uint8, or as a real number."""
    return zero.to(torch.uint8) if integer else as_stored(zero)


def weight_range(W: Tensor, symmetric: bool, integer: bool) -> tuple[Tensor, Tensor]:
    """W (..., g): -> the lowest and the highest value to represent, (...) each.

    symmetric: -max|w| and max|w|. integer: with an integer zero point the range holds zero, so that
    exact zeros stay exact.
    """
    low, high = W.aminmax(dim=-1)
    if symmetric:
        high = torch.maximum(-low, high)
        return -high, high
    if integer:
        return low.clamp_max(0), high.clamp_min(0)
    return low, high


def range_grid(
    low: Tensor, high: Tensor, scheme: Scheme, ratio: float | Tensor, integer: bool
) -> tuple[Tensor, Tensor]:
    """Scale and zero point, float32, of the grid over `ratio` times the range low .. high.

    low, high (...): as `weight_range` gives them; the results have their shape. Symmetric: scale =
    max|w| / (2^(b-1) - 1), zero point at the midpoint code 2^(b-1). A real zero point shrinks the
    range about its middle, an integer one about zero.
    """
    n = 2**scheme.bits - 1
    if scheme.symmetric:
        # n // 2 = 2^(b-1) - 1 steps on each side of the midpoint; code 0 is one more down.
        s = (high * (ratio / max(1, n // 2))).clamp_min(TINY)
        return s, torch.full_like(s, (n + 1) / 2)
    s = ((high - low) * (ratio / n)).clamp_min(TINY)
    if integer:
        # Code 0 stands for the lowest value: s (0 - z) = ratio low, but for the rounding of z.
        return s, (low * (-ratio) / s).round_().clamp_(0, n)
    # The middle of the codes stands for the middle of the range: s (n/2 - z) = (low + high)/2.
    return s, n / 2 - (low + high) / (2 * s)


def grid_error(
    W: Tensor, s: Tensor, z: Tensor, bits: int, norm: float, importance: Tensor | None = None
) -> Tensor:
    """(rows,): the sum over each row of f |w - s (q - z)|^norm with q the nearest code.

    W (rows, g), s and z (rows,), f = importance (rows, g) or None for 1, float32. In place where it
    can: this is the inner loop of the search.
    """
    q = torch.addcmul(z[:, None], W, (1 / s)[:, None])  # w / s + z
    q.round_().clamp_(0, 2**bits - 1)
    error = q.sub_(z[:, None]).mul_(s[:, None]).sub_(W)  # s (q - z) - w
    error = error.square_() if norm == 2 else error.abs_().pow_(norm)
    if importance is not None:
        error.mul_(importance)
    return error.sum(1)


def round_to_grid(W: Tensor, s: Tensor, z: Tensor | None, bits: int) -> Tensor:
    """Nearest codes (..., g) uint8 of W (..., g) float32 on the grid s (q - z).

    s and z (...): as they are stored, z None for a symmetric grid. Where the scale is zero the code
    is that of the zero point.
    """
    scale = s.float()
    zero = zero_as_float(s, z, bits)
    divisor = torch.where(scale > 0, scale, torch.inf)  # w / inf + z = z
    q = W / divisor[..., None] + zero[..., None]
    return q.round_().clamp_(0, 2**bits - 1).to(torch.uint8)


def zero_as_float(s: Tensor, z: Tensor | None, bits: int) -> Tensor:
    """The zero point as float32, in the shape of the scale; None is the midpoint code 2^(b-1)."""
    if z is None:
        return torch.full_like(s, 2.0 ** (bits - 1), dtype=torch.float32)
    return z.float()
