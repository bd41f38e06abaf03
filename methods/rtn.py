"""Round-to-nearest (RTN), the baseline every paper compares with, with a clip search.

Notation follows Frantar et al. 2022 (GPTQ, arXiv:2210.17323), section 2: W weight, q codes, s
scale, z zero point. The clip search is that of the authors' code (`mse=True`): try the min-max
range shrunk by several ratios, and keep the best for each group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qbench.contracts import Scheme
from qbench.errors import ConfigError
from qbench.formats import Uniform
from qbench.formats.packing import as_stored
from qbench.formats.snapping import check_scale_bits
from qbench.formats.stepped import values
from qbench.methods.grids import (
    TINY,
    Grid,
    SnappedGrid,
    fitted_line,
    fitted_scale,
    grid_error,
    range_grid,
    round_to_grid,
    row_slices,
    rows_of,
    stored_grid,
    stored_zero,
    weight_range,
    zero_of_stored,
)

CHUNK = 1 << 18  # weights searched at a time: their temporaries stay in the processor's cache


@dataclass(frozen=True)
class RTN:
    """Round each weight to the nearest point of its group's grid.

    clip: `search` shrinks the range where that lowers the mean |error|^norm; `none` keeps the
        minimum and maximum.
    zero_point: `integer` (stored in `bits` bits) or `real` (float16).
    norm: the exponent of the errors in the search.
    ratios, min_ratio: the search tries this many shrink ratios, evenly from 1 to min_ratio.
    refinements: how often it then tries both neighbours of the best ratio, at half the distance.
    fits: with norm 2, how many least-squares fits of the scale to the codes follow, from the best
        grid and from those with the neighbouring zero points.
    scale_bits: bits of a scale, and of a real zero point; 16 is half precision.
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
        """W (..., g) float32: -> scale and zero point (...), float32, before they are stored.

        importance: as in `grid`. A symmetric grid has a zero point, too.
        """
        scale, zero = self._over_rows(self._search, W, importance, scheme)
        return scale, zero

    def snapped_grid(
        self, W: Tensor, scheme: Scheme, importance: Tensor | None = None
    ) -> SnappedGrid:
        """Like `grid` for W (out, groups, g), with numbers that are stored in `scale_bits`.

        The zero points fit the scales as they are stored.
        """
        s, z = self.real_grid(W, scheme, importance)
        counts = None if importance is None else importance.sum(1)
        searched = None
        if self.zero_point == "integer":
            searched = partial(self.zero_points, W, scheme, importance, z=z)
        return stored_grid(s, z, scheme, self.scale_bits, searched, counts)

    def zero_points(
        self, W: Tensor, scheme: Scheme, importance: Tensor | None, s: Tensor, z: Tensor
    ) -> Tensor:
        """The best of the integer zero points z and their neighbours for scales s, (...) each.

        W (..., g) float32; importance: as in `grid`. The result is float32.
        """
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
        """What `search` gives for W (..., g), in tensors of shape (...).

        It is called as search(rows (k, g), their importance, scheme, part) -> (k,) each, for one
        part of the rows after the other.
        """
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
        """Try scales that are fitted to codes, also with the neighbouring zero points.

        The ratios have tried one zero point for each range.
        """
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
    """The best grid of every group so far, s and z (rows,), float32, with its error."""

    def __init__(
        self,
        W: Tensor,
        importance: Tensor | None,
        bits: int,
        norm: float,
        s: Tensor,
        z: Tensor,
    ) -> None:
        """W, importance (rows, g) float32. s, z: kept where no offered grid has a finite error."""
        self.W = W
        self.importance = importance
        self.bits = bits
        self.norm = norm
        self.s = s
        self.z = z
        self.error = torch.full_like(s, torch.inf)

    def offer(self, s: Tensor, z: Tensor) -> Tensor:
        """Take these grids where they are better; returns where, bool (rows,)."""
        error = grid_error(self.W, s, z, self.bits, self.norm, self.importance)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.s = torch.where(better, s, self.s)
        self.z = torch.where(better, z, self.z)
        return better
