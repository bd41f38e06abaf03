"""Scales as integers times a step per row, chosen before the codes so that weights move least.

The codes of a binary coding are +1 or -1, so an error in any alpha or in the shift moves a weight
by the same amount. So all of them share one step, and the smaller ones have fewer bits. With a span
for each, a row of few groups would take more bits for a larger error (`benchmarks/scale_bits.py`).

The nearest published relative is double quantization (QLoRA, arXiv:2305.14314, section 3), which
has 8 bits for a scale and a float32 for 256 of them.

A method snaps first, chooses codes by `values` of the result, and stores that result:

    alpha, shift = stored_coding(alpha, shift, scale_bits)
    planes = nearest_planes(W, values(alpha), values(shift))
    Binary.from_planes(planes, alpha, shift)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qbench.errors import ConfigError
from qbench.formats.packing import as_stored, off
from qbench.formats.stepped import MOST, Numbers, Stepped, limits, nearest, values

HALF = 16  # scale_bits of half precision
LEAST = 4  # of integers
FEWEST = 3  # bits of a difference
# Steps that are tried, from the least one that cuts nothing off down to this part of the one that
# reaches the largest scale: a smaller step cuts some numbers off and is finer for all others.
TRIALS = 32
SMALLEST_PART = 0.6


class Part(NamedTuple):
    """Numbers of a weight's groups that will be stored as integers.

    numbers (float32, (out, groups, len(bits)) or (out, groups)). bits, signed: see `Stepped`.
    vanish: whether a number that is not zero may become zero.
    """

    numbers: Tensor
    bits: tuple[int, ...] | int
    signed: bool = False
    vanish: bool = True

    def nearest(self, step: Tensor) -> Tensor:
        """The nearest multiples of a step (out,), which may be 0, in the shape of the numbers."""
        divisor = torch.where(step > 0, step, torch.inf)
        multiples = nearest(self.numbers / self.by_row(divisor), self.bits, self.signed)
        if self.vanish:
            return multiples
        return torch.maximum(multiples, (self.numbers > 0).float())

    def by_row(self, rows: Tensor) -> Tensor:
        """A tensor (out,) in a shape that broadcasts over the numbers."""
        return rows.view(-1, *[1] * (self.numbers.ndim - 1))


def check_scale_bits(scale_bits: int) -> None:
    """ConfigError unless `scale_bits` is 16, half precision, or from 4 to 8."""
    if scale_bits != HALF and not LEAST <= scale_bits <= MOST:
        raise ConfigError(
            f"scale_bits={scale_bits} is neither {HALF} (half precision) nor from {LEAST} to "
            f"{MOST}; choose 16, or 6, 7 or 8 for 2, 3 or 4 bits"
        )


def coding_bits(scale_bits: int, planes: int) -> tuple[tuple[int, ...], int]:
    """Bits of the alphas' chain, and of the shift in two's complement.

    An alpha is about half of the one before; the more planes there are, the more exactly. In most
    groups the shift is at most a quarter of the largest alpha, on either side of zero.
    """
    widths = [scale_bits]
    for plane in range(1, planes):
        widths.append(max(FEWEST, scale_bits - max(2, planes - 1) - (plane - 1)))
    return tuple(widths), scale_bits - 1


def half_coding(alpha: Tensor, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Alphas (..., planes) and shift (...) of a binary weight in half precision (`as_stored`).

    An error in any of them moves a weight, and so counts by half a step of an even grid.
    """
    half_step = alpha.abs().amax(-1) / 2.0 ** (alpha.shape[-1] - 1)  # (...)
    alphas = as_stored(alpha, beside=half_step[..., None])
    return alphas, None if shift is None else as_stored(shift, beside=half_step)


def stored_coding(
    alpha: Tensor,
    shift: Tensor | None,
    scale_bits: int = HALF,
    importance: Tensor | None = None,
) -> tuple[Numbers, Numbers | None]:
    """Alphas and shift of a binary weight as they are to be stored.

    alpha (floating, (out, groups, planes)): magnitudes, the largest first. shift (floating, (out,
    groups)), or None. importance (floating, (out, groups) or (groups,)): what a squared error
    counts in a group, such as the sum of the Hessian's diagonal over its inputs; None: all alike.

    The result is in half precision (`half_coding`) where scale_bits is 16, where integers would not
    take fewer bytes (one group per row and few planes), and where a number is not finite.
    ConfigError for scale_bits that `check_scale_bits` refuses, and where an alpha is negative.
    """
    check_scale_bits(scale_bits)
    halves = half_coding(alpha, shift)
    if scale_bits == HALF or not _finite(alpha, shift):
        return halves
    _require_magnitudes("alpha", alpha, " to the plane")
    widths, shift_bits = coding_bits(scale_bits, alpha.shape[2])
    parts = [Part(alpha.float(), widths)]
    if shift is not None:
        parts.append(Part(shift.float(), shift_bits, signed=True))
    stepped = snapped(parts, scale_bits, importance)
    if not _saves(stepped, halves):
        return halves
    return stepped[0], None if shift is None else stepped[1]


def stored_scale(
    scale: Tensor, scale_bits: int = HALF, importance: Tensor | None = None
) -> Numbers:
    """Scales of a uniform weight as they are to be stored.

    scale (floating, (out, groups)): not negative; one that is not zero does not become zero.
    importance, and when the result is in half precision: see `stored_coding`, as for ConfigError.
    """
    check_scale_bits(scale_bits)
    half = as_stored(scale)
    if scale_bits == HALF or not _finite(scale):
        return half
    _require_magnitudes("scale", scale)
    # a grid whose scale is zero has a single level
    part = Part(scale.float(), scale_bits, vanish=False)
    return _smaller(part, scale_bits, importance, half)


def stored_zero_points(
    zero: Tensor,
    scale: Tensor,
    bits: int,
    scale_bits: int = HALF,
    importance: Tensor | None = None,
) -> Numbers:
    """Real zero points of a uniform weight of `bits` bits as they are to be stored.

    zero (floating, (out, groups)): they get a span of their own about the middle 2^(bits-1). scale
    (floating, (out, groups)): of their groups, by which their errors are weighted. importance: see
    `stored_coding`.

    They are in half precision where scales would be, and also where one would move by more than
    half a step and more than a thirty-second of its grid, as in a row whose groups are at different
    distances from zero.
    """
    half = as_stored(zero, beside=1.0)  # a step of the grid
    if scale_bits == HALF or not _finite(zero, scale):
        return half
    middle = 2.0 ** (bits - 1)
    part = Part(zero.float() - middle, scale_bits, signed=True)
    counts = scale.float().square()
    if importance is not None:
        counts = counts * importance
    zeros = _smaller(part, scale_bits - 1, counts, half, middle)
    moved = (values(zeros).float() - zero).abs()
    return half if (moved > max(0.5, 2**bits / 32)).any() else zeros


def _smaller(
    part: Part, places: int, importance: Tensor | None, half: Tensor, middle: float = 0.0
) -> Numbers:
    """The part as integers, or `half` where that takes no more bytes."""
    stepped = snapped([part], places, importance, middle)
    return stepped[0] if _saves(stepped, (half,)) else half


def snapped(
    parts: list[Part], places: int, importance: Tensor | None, middle: float = 0.0
) -> list[Stepped]:
    """Parts that share a span, with the step of least squared error for each row.

    places: a span is 2^places steps. importance (out, groups) or (groups,): see `stored_coding`.
    middle: as in `Stepped`; the numbers of the parts are without it.
    """
    widest = torch.stack([_reach(part) for part in parts]).amax(0)  # (out,): it cuts nothing off
    first = parts[0]
    largest = first.numbers if isinstance(first.bits, int) else first.numbers[..., 0]
    width = first.bits if isinstance(first.bits, int) else first.bits[0]
    finest = _reach(Part(largest, width, first.signed)) * SMALLEST_PART
    dtype = as_stored(widest * 2.0**places, beside=middle).dtype
    if off(widest.to(dtype), widest, beside=middle).any():  # products with a step are rounded, too
        dtype = torch.float32
    error = torch.full_like(widest, torch.inf)
    span = torch.zeros_like(widest, dtype=dtype)
    chosen = [torch.zeros_like(part.numbers) for part in parts]
    for trial in range(TRIALS):
        fraction = trial / (TRIALS - 1)
        # between them in equal ratios; a row of zeros has a step of zero
        tried = (widest ** (1 - fraction) * finest**fraction * 2.0**places).to(dtype)
        step = tried.float() * 2.0**-places
        candidates = [part.nearest(step) for part in parts]
        now = _error(parts, candidates, step, importance)
        better = now < error
        error = torch.where(better, now, error)
        span = torch.where(better, tried, span)
        for index, part in enumerate(parts):
            chosen[index] = torch.where(part.by_row(better), candidates[index], chosen[index])
    return [
        Stepped.pack(multiples, span, part.bits, places, part.signed, middle)
        for part, multiples in zip(parts, chosen, strict=True)
    ]


def _reach(part: Part) -> Tensor:
    """(out,): the smallest step with which no number of a part is out of range."""
    if isinstance(part.bits, int):
        return part.numbers.abs().amax(1) / limits(part.bits, part.signed)[1]
    columns = part.numbers.unbind(-1)  # (out, groups) each
    reach = columns[0].amax(1) / limits(part.bits[0], signed=False)[1]
    for before, number, width in zip(columns, columns[1:], part.bits[1:], strict=False):
        difference = (number - before / 2).abs().amax(1)
        reach = torch.maximum(reach, difference / limits(width, signed=True)[1])
    return reach


def _error(
    parts: list[Part], candidates: list[Tensor], step: Tensor, importance: Tensor | None
) -> Tensor:
    """(out,): the squared error of the parts as multiples of a step, summed over the groups."""
    total = torch.zeros_like(step)
    for part, multiples in zip(parts, candidates, strict=True):
        error = (multiples * part.by_row(step) - part.numbers).square()
        error = error if error.ndim == 2 else error.sum(-1)  # (out, groups)
        total += (error if importance is None else error * importance).sum(1)
    return total


def _finite(*numbers: Tensor | None) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in numbers if part is not None)


def _require_magnitudes(name: str, numbers: Tensor, where: str = "") -> None:
    if (numbers < 0).any():
        raise ConfigError(
            f"{name} is {numbers.amin().item():.4g} somewhere, and as an integer it has no sign; "
            f"give its magnitude{', and its sign' * bool(where)}{where}"
        )


def _saves(stepped: list[Stepped], halves: tuple[Tensor | None, ...]) -> bool:
    """Whether numbers as integers, with one span, take fewer bytes than in half precision."""
    integers = sum(part.codes.nbytes for part in stepped) + stepped[0].span.nbytes
    return integers < sum(half.nbytes for half in halves if half is not None)
