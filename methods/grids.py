"""Uniform grids s (q - z): of a range, fitted to codes, their nearest codes and their errors.

Notation follows Frantar et al. 2022 (GPTQ, arXiv:2210.17323), section 2: W weight, q codes, s
scale, z zero point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from qbench.contracts import Scheme
from qbench.formats.packing import as_stored
from qbench.formats.snapping import stored_scale, stored_zero_points
from qbench.formats.stepped import Numbers, Stepped, values
from qbench.methods.native import loops

# Scale and zero point; None is the midpoint of a symmetric grid.
Grid = tuple[Tensor, Tensor | None]
SnappedGrid = tuple[Numbers, Numbers | None]
GPU_CHUNK = 1 << 25  # weights at a time elsewhere: few launches, and temporaries of 128 MB
TINY = 1e-12  # a group of zeros has a zero range
FARTHEST = 1024  # steps of a real zero point from the middle; float16 has halves of steps up to it


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


def nearest_codes(W: Tensor, s: Tensor, z: Tensor, bits: int) -> Tensor:
    """Codes (rows, g) float32 of W (rows, g) on the grid s (q - z), s and z (rows,) float32."""
    q = torch.addcmul(z[:, None], W, (1 / s)[:, None])  # w / s + z
    return q.round_().clamp_(0, 2**bits - 1)


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


def zero_of_stored(s: Tensor, z: Tensor, stored: Tensor, bits: int) -> Tensor:
    """Real zero points (...), float32, for scales that are stored (...) in place of s (...).

    The middle of the grid, s (n/2 - z), stays where it is: it may be many steps from zero, so that
    what rounding does to a step would move the whole grid.
    """
    half = (2**bits - 1) / 2
    middle = s * (half - z)
    step = stored.float()
    return half - torch.where(step > 0, middle / step.clamp_min(TINY), 0.0)


def stored_grid(
    s: Tensor,
    z: Tensor,
    scheme: Scheme,
    scale_bits: int,
    integer_zeros: Callable[[Tensor], Tensor] | None,
    importance: Tensor | None = None,
) -> SnappedGrid:
    """The grid s (q - z) as it is stored; its zero points fit the scales as these are stored.

    s, z (out, groups), float32. integer_zeros: what chooses the zero points (out, groups) again for
    scales (out, groups) that are stored as integers; None where zero points are real numbers.
    importance (out, groups) or (groups,): what an error of each scale counts, None for 1.

    ConfigError as `qbench.formats.snapping.stored_scale` raises it.
    """
    scale = stored_scale(s, scale_bits, importance)
    if scheme.symmetric:
        return scale, None
    step = values(scale)
    if integer_zeros is None:
        z = zero_of_stored(s, z, step, scheme.bits)
        return scale, stored_zero_points(z, step, scheme.bits, scale_bits, importance)
    if isinstance(scale, Stepped):
        z = integer_zeros(step)
    return scale, stored_zero(z, integer=True)


def stored_zero(zero: Tensor, integer: bool) -> Tensor:
    """A zero point, float32, in the dtype it is stored in: uint8, or as a real number."""
    return zero.to(torch.uint8) if integer else as_stored(zero, beside=1.0)


def zero_as_float(s: Tensor, z: Tensor | None, bits: int) -> Tensor:
    """The zero point as float32, in the shape of the scale; None is the midpoint code 2^(b-1)."""
    if z is None:
        return torch.full_like(s, 2.0 ** (bits - 1), dtype=torch.float32)
    return z.float()


def row_slices(X: Tensor, weights: int) -> Iterator[slice]:
    """Slices of the rows of X (rows, g): of so many weights on a CPU, of `GPU_CHUNK` elsewhere."""
    if X.device.type != "cpu":
        weights = GPU_CHUNK
    step = max(1, weights // X.shape[1])
    for start in range(0, len(X), step):
        yield slice(start, start + step)


def where_rows(
    better: Tensor, chosen: Sequence[Tensor], other: Sequence[Tensor]
) -> Iterator[Tensor]:
    """The parts of `chosen` in the rows where `better` is true, those of `other` elsewhere.

    better (rows): bool. chosen, other: tensors (rows, ...), where rows may be several axes.
    """
    for new, old in zip(chosen, other, strict=True):
        mask = better.view(*better.shape, *[1] * (new.ndim - better.ndim))
        yield torch.where(mask, new, old)


def rows_of(importance: Tensor | None, part: slice, rows: int) -> Tensor | None:
    """Of importance (groups, g), that of the rows `part` of (out * groups, g), out * groups = rows.

    Row r belongs to group r % groups.
    """
    if importance is None:
        return None
    start, stop, _ = part.indices(rows)
    return importance[torch.arange(start, stop, device=importance.device) % len(importance)]
