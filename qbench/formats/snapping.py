"""Scales as integers times a step per row: chosen so that weights move least, before their codes.

An error in any alpha or in the shift of a binary coding moves a weight by as much, as codes are +1
or -1. So the best step is one for all of them, and the smaller ones have fewer bits: with a span
for each, a row of few groups pays more for a larger error (ARCHITECTURE.md has the figures).

The nearest published relative is double quantization (QLoRA, arXiv:2305.14314, section 3), which
has 8 bits for a scale and a float32 for 256 of them.

A method snaps first and chooses codes by `values` of what it got, which is what it stores:

    alpha, shift = stored_coding(alpha, shift, scale_bits)
    planes = nearest_planes(W, values(alpha), values(shift))
    Binary.from_planes(planes, alpha, shift)
"""

from __future__ import annotations

import torch
from torch import Tensor

from qbench.errors import ConfigError
from qbench.formats.packing import as_stored
from qbench.formats.stepped import MOST, Numbers, Stepped

HALF = 16  # scale_bits of half precision
LEAST = 4  # of integers
FEWEST = 2  # bits of the smallest alpha
# Spans that are tried: parts of the least one that reaches every number. A smaller one cuts the
# largest numbers off and makes the step finer for all.
TRIALS = 24
SMALLEST_PART = 0.6


def check_scale_bits(scale_bits: int) -> None:
    """ConfigError unless `scale_bits` is 16, half precision, or from 4 to 8."""
    if scale_bits != HALF and not LEAST <= scale_bits <= MOST:
        raise ConfigError(
            f"scale_bits={scale_bits} is neither {HALF} (half precision) nor from {LEAST} to "
            f"{MOST}; choose 16, or 6, 7 or 8 for 2, 3 or 4 bits"
        )


def coding_bits(scale_bits: int, planes: int) -> tuple[tuple[int, ...], int]:
    """Bits of the alphas, largest first, and of the shift in two's complement.

    A plane's alpha is about half of the one before, and so has a bit less. The shift lies within a
    quarter of the largest alpha on either side in most groups, which is a bit less as well.
    """
    widths = tuple(max(FEWEST, scale_bits - plane) for plane in range(planes))
    return widths, scale_bits - 1


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

    In half precision (`as_stored`) where scale_bits is 16, where integers would take no fewer bytes
    (one group per row and few planes), and where a number is not finite. ConfigError for other
    scale_bits than `check_scale_bits` allows, and where an alpha is negative.
    """
    check_scale_bits(scale_bits)
    halves = (as_stored(alpha), None if shift is None else as_stored(shift))
    if scale_bits == HALF:
        return halves
    if (alpha < 0).any():
        raise ConfigError(
            f"alpha is {alpha.amin().item():.4g} somewhere, and as an integer it has no sign; "
            "give its magnitude, and its sign to the plane"
        )
    widths, shift_bits = coding_bits(scale_bits, alpha.shape[2])
    numbers = alpha.float()
    low = [0] * len(widths)
    high = [2**width - 1 for width in widths]
    if shift is not None:
        numbers = torch.cat([numbers, shift.float()[..., None]], -1)  # (out, groups, numbers)
        low.append(-(2 ** (shift_bits - 1)))
        high.append(2 ** (shift_bits - 1) - 1)
    if not torch.isfinite(numbers).all():
        return halves
    codes, span = _snap(numbers, low, high, scale_bits, importance)
    planes = len(widths)
    alphas = Stepped.pack(codes[..., :planes], span, widths, scale_bits)
    if shift is None:
        return (alphas, None) if _saves([alphas], halves) else halves
    shifts = Stepped.pack(codes[..., planes], span, shift_bits, scale_bits, signed=True)
    return (alphas, shifts) if _saves([alphas, shifts], halves) else halves


def stored_grid(
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    scale_bits: int = HALF,
    importance: Tensor | None = None,
) -> tuple[Numbers, Numbers | None]:
    """Scale and zero point of a uniform weight of `bits` bits as they are to be stored.

    scale (floating, (out, groups)): not negative; one that is not zero does not become zero. zero:
    real numbers (floating, (out, groups)), which get a span of their own about the middle
    2^(bits-1); integers (uint8) or None come back as they are. importance: see `stored_coding`.

    In half precision as `stored_coding` says, each of the two for itself. ConfigError likewise.
    """
    check_scale_bits(scale_bits)
    half = as_stored(scale)
    real = zero is not None and zero.is_floating_point()
    half_zero = as_stored(zero) if zero is not None and real else zero
    if scale_bits == HALF:
        return half, half_zero
    if (scale < 0).any():
        raise ConfigError(
            f"scale is {scale.amin().item():.4g} somewhere, and as an integer it has no sign; "
            "give its magnitude"
        )
    top = 2**scale_bits - 1
    steps = _one_number(scale, 0, top, scale_bits, importance, half)
    if zero is None or not real:
        return steps, zero
    middle = 2.0 ** (bits - 1)
    half_way = 2 ** (scale_bits - 1)
    zeros = _one_number(
        zero, -half_way, half_way - 1, scale_bits - 1, importance, as_stored(zero), middle
    )
    return steps, zeros


def _one_number(
    numbers: Tensor,
    low: int,
    high: int,
    places: int,
    importance: Tensor | None,
    half: Tensor,
    middle: float = 0.0,
) -> Numbers:
    """Numbers (out, groups) as integers in low..high, or `half` where that is to be."""
    if not torch.isfinite(numbers).all():
        return half
    about = numbers.float()[..., None] - middle
    codes, span = _snap(about, [low], [high], places, importance)
    codes = codes[..., 0]
    signed = low < 0
    if not signed:
        codes = torch.where(numbers > 0, codes.clamp_min(1), codes)
    bits = (high - low).bit_length()
    steps = Stepped.pack(codes, span, bits, places, signed, middle)
    return steps if _saves([steps], (half,)) else half


def _snap(
    numbers: Tensor, low: list[int], high: list[int], places: int, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Codes (float32, as numbers) and span (out,) of least squared error among the trials.

    numbers (float32, (out, groups, k)); low, high: the limits of each of the k. places: of the
    span. importance: see `stored_coding`.
    """
    least = numbers.new_tensor(low)
    most = numbers.new_tensor(high)
    reach = (numbers.abs() / most).amax((1, 2)) * 2.0**places  # (out,): cuts nothing off
    dtype = as_stored(reach).dtype
    best_error = torch.full_like(reach, torch.inf)
    best_span = torch.zeros_like(reach, dtype=dtype)
    best_codes = torch.zeros_like(numbers)
    for trial in range(TRIALS):
        part = SMALLEST_PART ** (trial / (TRIALS - 1))  # from 1 down
        span = (reach * part).to(dtype)
        step = (span.float() * 2.0**-places)[:, None, None]
        codes = (numbers / torch.where(step > 0, step, torch.inf)).round_()
        codes = codes.clamp_(least, most)
        error = (codes * step).sub_(numbers).square_().sum(-1)  # (out, groups)
        if importance is not None:
            error = error * importance
        total = error.sum(1)
        better = total < best_error
        best_error = torch.where(better, total, best_error)
        best_span = torch.where(better, span, best_span)
        best_codes = torch.where(better[:, None, None], codes, best_codes)
    return best_codes, best_span


def _saves(steps: list[Stepped], halves: tuple[Tensor | None, ...]) -> bool:
    """Whether numbers as integers, with one span, take fewer bytes than in half precision."""
    stepped = sum(numbers.codes.nbytes for numbers in steps) + steps[0].span.nbytes
    return stepped < sum(half.nbytes for half in halves if half is not None)
