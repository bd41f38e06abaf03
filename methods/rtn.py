"""Round-to-nearest (RTN), the baseline every paper compares with, with a clip search.

Notation follows Frantar et al. 2022 (GPTQ, arXiv:2210.17323), section 2: W weight, q codes, s
scale, z zero point; the clip search is that of its code (`mse=True`): shrink the min-max range by a
ratio r and keep the best per group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qbench.contracts import Scheme
from qbench.errors import ConfigError
from qbench.formats import Uniform
from qbench.formats.packing import as_stored
from qbench.formats.snapping import check_scale_bits, stored_scale, stored_zero_points
from qbench.formats.stepped import Numbers, Stepped, values
from qbench.methods.native import loops

# Scale and zero point; None is the midpoint of a symmetric grid.
Grid = tuple[Tensor, Tensor | None]
SnappedGrid = tuple[Numbers, Numbers | None]
CHUNK = 1 << 18  # weights searched at a time: their temporaries stay in the processor's cache
GPU_CHUNK = 1 << 25  # weights at a time elsewhere: few launches, and temporaries of 128 MB
TINY = 1e-12  # a group of zeros has a zero range
FARTHEST = 1024  # steps of a real zero point from the middle; float16 has halves of steps up to it


@dataclass(frozen=True)
class RTN:
    """Round each weight to the nearest point of its group's grid.

    clip: `search` shrinks the range where that lowers the mean |error|^norm, `none` keeps the
    minimum and maximum. zero_point: `integer` (stored in `bits` bits) or `real` (float16). The
    search tries `ratios` shrink ratios evenly from 1 down to min_ratio, and then, `refinements`
    times, both neighbours of the best at half the distance. With norm 2, `fits` least-squares fits
    of the scale to the codes follow, from the best grid and from its neighbouring zero points.
    scale_bits: of a scale, and of a real zero point; 16 is half precision.
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
    ratios: int = 6
    refinements: int = 2
    min_ratio: float = 0.25
    fits: int = 1
    scale_bits: int = 16

    def __post_init__(self) -> None:
        if not self.norm > 0:
            raise ConfigError(f"norm={self.norm}: give more than 0; 2 is the squared error")
        if self.ratios < 1 or self.refinements < 0 or self.fits < 0:
            raise ConfigError(
                f"ratios={self.ratios}, refinements={self.refinements}, fits={self.fits}: "
                "give 1 or more ratios, and 0 or more refinements and fits"
            )
        if not 0 < self.min_ratio <= 1:
            raise ConfigError(f"min_ratio={self.min_ratio}: give a share of the range, within 0..1")
        check_scale_bits(self.scale_bits)

    def quantize_weight(self, weight: Tensor, scheme: Scheme) -> Uniform:
        """weight (out, in), floating: -> Uniform, its codes rounded to the grid as it is stored."""
        group = scheme.group_length(weight.shape[1])
        W = weight.float().unflatten(1, (-1, group))  # (out, groups, g)
        s, z = self.snapped_grid(W, scheme)  # (out, groups) each
        codes = round_to_grid(W, values(s), values(z), scheme.bits).flatten(1)  # (out, in)
        return Uniform.from_codes(codes, s, z, scheme.bits)

    def grid(self, W: Tensor, scheme: Scheme, importance: Tensor | None = None) -> Grid:
        """W (..., g) float32: -> scale and zero point (...), in the dtypes of half precision.

        importance (groups, g) float32, not negative: what a squared error of each input counts in
        the search, for W (..., groups, g). None counts all alike.
        """
        s, z = self.real_grid(W, scheme, importance)
        scale = as_stored(s)
        if scheme.symmetric:
            return scale, None
        integer = self.zero_point == "integer"
        if not integer:
            z = zero_of_stored(s, z, scale, scheme.bits)
        return scale, stored_zero(z, integer)

    def real_grid(
        self, W: Tensor, scheme: Scheme, importance: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Like `grid`, float32, before it is stored; the zero point of a symmetric one, too."""
        scale, zero = self._over_rows(self._search, W, importance, scheme)
        return scale, zero

    def snapped_grid(
        self, W: Tensor, scheme: Scheme, importance: Tensor | None = None
    ) -> SnappedGrid:
        """Like `grid`, of W (out, groups, g), as it is stored in `scale_bits`.

        Zero points are those of the scales that are stored.
        """
        s, z = self.real_grid(W, scheme, importance)
        counts = None if importance is None else importance.sum(1)
        scale = stored_scale(s, self.scale_bits, counts)
        if scheme.symmetric:
            return scale, None
        if self.zero_point == "real":
            step = values(scale)
            z = zero_of_stored(s, z, step, scheme.bits)
            return scale, stored_zero_points(z, step, scheme.bits, self.scale_bits, counts)
        if isinstance(scale, Stepped):
            z = self.zero_points(W, scheme, importance, scale.dequantize(), z)
        return scale, stored_zero(z, integer=True)

    def zero_points(
        self, W: Tensor, scheme: Scheme, importance: Tensor | None, s: Tensor, z: Tensor
    ) -> Tensor:
        """The best of the integer zero points z and their neighbours for scales s, (...) each."""
        s = s.float().clamp_min(TINY).flatten()
        search = partial(self._search_zero, s=s, z=z.flatten())
        return self._over_rows(search, W, importance, scheme)[0]

    def _over_rows(
        self,
        search: Callable[..., tuple[Tensor, ...]],
        W: Tensor,
        importance: Tensor | None,
        scheme: Scheme,
    ) -> list[Tensor]:
        """search(rows (k, g), their importance, scheme, part) -> (k,) each, for all W (..., g)."""
        rows = W.reshape(-1, W.shape[-1])
        searched = []
        for part in row_slices(rows, CHUNK):
            counts = rows_of(importance, part, len(rows))
            searched.append(search(rows[part], counts, scheme, part))
        return [torch.cat(parts).view(W.shape[:-1]) for parts in zip(*searched, strict=True)]

    def _search(
        self, W: Tensor, importance: Tensor | None, scheme: Scheme, part: slice
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
        best = _Best(W, importance, scheme.bits, self.norm, s, z)
        best_ratio = torch.ones_like(s)
        step = (1 - self.min_ratio) / max(1, self.ratios - 1)
        trials = [torch.full_like(s, 1 - step * i) for i in range(self.ratios)]
        for halving in range(self.refinements + 1):
            for ratio in trials:  # (rows,)
                better = best.offer(*range_grid(low, high, scheme, ratio, integer))
                best_ratio = torch.where(better, ratio, best_ratio)
            finer = step / 2 ** (halving + 1)
            trials = [(best_ratio + finer).clamp_max(1), best_ratio - finer]
        if self.norm == 2:
            self._fit(best, scheme, integer)
        return best.s, best.z

    def _fit(self, best: _Best, scheme: Scheme, integer: bool) -> None:
        """Offer scales that are fitted to codes; the ratios know one zero point for each range."""
        s, z = best.s, best.z
        neighbours = (0,) if scheme.symmetric or not integer else (0, -1, 1)
        for change in neighbours:
            zero = (z + change).clamp_(0, 2**scheme.bits - 1) if change else z
            scale = s
            for _ in range(self.fits):
                if integer or scheme.symmetric:
                    scale = fitted_scale(best.W, scale, zero, scheme.bits, best.importance)
                else:
                    scale, zero = fitted_line(best.W, scale, zero, scheme.bits, best.importance)
                best.offer(scale, zero)

    def _search_zero(
        self,
        W: Tensor,
        importance: Tensor | None,
        scheme: Scheme,
        part: slice,
        s: Tensor,
        z: Tensor,
    ) -> tuple[Tensor]:
        """(rows,): the best of z and its neighbours for the scales s; both are of all rows."""
        best = _Best(W, importance, scheme.bits, self.norm, s[part], z[part])
        for change in (0, -1, 1):
            best.offer(s[part], (z[part] + change).clamp_(0, 2**scheme.bits - 1))
        return (best.z,)


class _Best:
    """The best grid of every group so far: s and z (rows,), float32, and its error."""

    def __init__(
        self,
        W: Tensor,
        importance: Tensor | None,
        bits: int,
        norm: float,
        s: Tensor,
        z: Tensor,
    ) -> None:
        """W, importance (rows, g) float32; s and z where nothing that is offered has an error."""
        self.W = W
        self.importance = importance
        self.bits = bits
        self.norm = norm
        self.s = s
        self.z = z
        self.error = torch.full_like(s, torch.inf)

    def offer(self, s: Tensor, z: Tensor) -> Tensor:
        """Take these grids where they are better; bool (rows,)."""
        error = grid_error(self.W, s, z, self.bits, self.norm, self.importance)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.s = torch.where(better, s, self.s)
        self.z = torch.where(better, z, self.z)
        return better


def fitted_scale(W: Tensor, s: Tensor, z: Tensor, bits: int, importance: Tensor | None) -> Tensor:
    """(rows,): the scale with the least sum f (w - s (q - z))^2 for the codes q of the grid s, z.

    sum f (q - z) w / sum f (q - z)^2. Arguments: see `grid_error`.
    """
    if loops.here(W, s, z, importance):
        with_w, with_d = loops.fit_sums(W, s, z, bits, importance)
    else:
        d = nearest_codes(W, s, z, bits).sub_(z[:, None])  # q - z
        f = d if importance is None else d * importance
        with_w = (f * W).sum(1)
        with_d = (f * d).sum(1)
    return (with_w / with_d.clamp_min(TINY**2)).clamp_min(TINY)


def fitted_line(
    W: Tensor, s: Tensor, z: Tensor, bits: int, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scale and real zero point (rows,) of the line through codes and weights, by least squares.

    w = s q - s z: the slope, and what is left at the means. Arguments: see `grid_error`.
    """
    q = nearest_codes(W, s, z, bits)
    f = torch.ones_like(q) if importance is None else importance
    total = f.sum(1, keepdim=True)
    mean_q = (f * q).sum(1, keepdim=True) / total
    mean_w = (f * W).sum(1, keepdim=True) / total
    q -= mean_q
    slope = (f * q * (W - mean_w)).sum(1) / (f * q * q).sum(1).clamp_min(TINY**2)
    scale = torch.where(slope > TINY, slope, s)  # one code for all weights has no slope
    scale = torch.maximum(scale, mean_w[:, 0].abs() / FARTHEST)
    return scale, mean_q[:, 0] - mean_w[:, 0] / scale


def nearest_codes(W: Tensor, s: Tensor, z: Tensor, bits: int) -> Tensor:
    """Codes (rows, g) float32 of W (rows, g) on the grid s (q - z), s and z (rows,) float32."""
    q = torch.addcmul(z[:, None], W, (1 / s)[:, None])  # w / s + z
    return q.round_().clamp_(0, 2**bits - 1)


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


def zero_of_stored(s: Tensor, z: Tensor, stored: Tensor, bits: int) -> Tensor:
    """Real zero points (...), float32, for scales that are stored (...) in place of s (...).

    The middle of the grid, s (n/2 - z), stays where it is: it may be many steps from zero, so that
    what rounding does to a step would move the whole grid.
    """
    half = (2**bits - 1) / 2
    middle = s * (half - z)
    step = stored.float()
    return half - torch.where(step > 0, middle / step.clamp_min(TINY), 0.0)


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
    range about its middle, an integer one about zero. A range whose middle is more than `FARTHEST`
    of its steps from zero gets larger steps.
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
    middle = (low + high) / 2
    s = torch.maximum(s, middle.abs() / FARTHEST)
    return s, n / 2 - middle / s


def grid_error(
    W: Tensor, s: Tensor, z: Tensor, bits: int, norm: float, importance: Tensor | None = None
) -> Tensor:
    """(rows,): the sum over each row of f |w - s (q - z)|^norm with q the nearest code.

    W (rows, g), s and z (rows,), f = importance (rows, g) or None for 1, float32. In place where it
    can: this is the inner loop of the search.
    """
    if norm == 2 and loops.here(W, s, z, importance):
        return loops.grid_error(W, s, z, bits, importance)
    q = nearest_codes(W, s, z, bits)
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
