"""Scales and shifts of a binary coding as they are stored: at the start, and while they train.

The numbers of a row that are integers times a step (`qbench.formats.stepped`) keep that step in
training, so that what is trained is what is stored. In half precision they train as they are, and
are rounded at the end: that moves a number by no more than a 2048th.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qbench.formats.snapping import LEAST, half_coding, stored_coding
from qbench.formats.stepped import MOST, Numbers, Stepped, nearest, values

DISTORTED = 1 / 8  # share of the groups that one step per row may distort


def default_scale_bits(bits: int) -> int:
    """Bits of the largest scale, by the bits of the weight: 6, 7 and 8 at 2, 3 and 4 bits.

    They take 0.27 to 0.45 bits per weight in groups of 64, and raise the squared error of
    `alternating` by 0.1, 0.1 and 1.8 % (`benchmarks/scale_bits.py`). A coding from the uniform grid
    loses less to the nearest numbers, as its alphas are nearly halves.
    """
    return min(MOST, max(LEAST, bits + 4))


def stored_numbers(
    alpha: Tensor, shift: Tensor, scale_bits: int, weights: Tensor | None = None
) -> tuple[Numbers, Numbers]:
    """`stored_coding` of alpha (out, groups, b) and shift (out, groups), or half precision.

    weights (groups,): what an error counts in each group. Where a group is many times smaller than
    the largest of its row, its scales are only a few of the row's steps. Half precision is taken
    where more than `DISTORTED` of the groups move by a quarter of their largest scale.
    """
    alphas, shifts = stored_coding(alpha, shift, scale_bits, weights)
    assert shifts is not None  # a shift was given
    moved = (values(alphas).float() - alpha).abs().amax(2)
    moved = torch.maximum(moved, (values(shifts).float() - shift).abs())  # (out, groups)
    if (moved > alpha[..., 0] / 4).float().mean() > DISTORTED:
        return _halves(alpha, shift)
    return alphas, shifts


@dataclass(frozen=True)
class Steps:
    """What a weight's numbers are multiples of.

    step (out, 1): of a row. widths: bits of the alphas' chain. shift_bits: of the shift, signed;
    0 where there is none. span, places: as in `Stepped`.
    """

    step: Tensor
    widths: tuple[int, ...]
    shift_bits: int
    span: Tensor
    places: int

    @classmethod
    def of(cls, alpha: Numbers, shift: Numbers | None) -> Steps | None:
        """Those of numbers as `stored_coding` gives them; None in half precision."""
        if not isinstance(alpha, Stepped):
            return None
        shift_bits = sum(shift.widths) if isinstance(shift, Stepped) else 0
        step = _step(alpha.span, alpha.places)
        return cls(step, alpha.widths, shift_bits, alpha.span, alpha.places)

    def with_span(self, span: Tensor) -> Steps:
        """For rows with other spans (out,)."""
        return replace(self, span=span, step=_step(span, self.places))

    def codes(self, alpha: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest integers, float32, of alpha (out, groups, b) and shift (out, groups)."""
        step = torch.where(self.step > 0, self.step, torch.inf)
        alphas = nearest(alpha / step[..., None], self.widths)
        if not self.shift_bits:
            return alphas, torch.zeros_like(shift)
        return alphas, nearest(shift / step, self.shift_bits, signed=True)

    def snapped(self, alpha: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers nearest to alpha (out, groups, b) and shift (out, groups), float32."""
        alphas, shifts = self.codes(alpha, shift)
        dtype = self.span.dtype  # to which a reader rounds the products
        alphas = (alphas * self.step[..., None]).to(dtype).float()
        return alphas, (shifts * self.step).to(dtype).float()

    def stored(self, alpha: Tensor, shift: Tensor) -> tuple[Numbers, Numbers | None]:
        """The nearest numbers to alpha (out, groups, b) and shift (out, groups), as stored."""
        alphas, shifts = self.codes(alpha, shift)
        packed = Stepped.pack(alphas, self.span, self.widths, self.places)
        if not self.shift_bits:
            return packed, None
        return packed, Stepped.pack(shifts, self.span, self.shift_bits, self.places, signed=True)


def _step(span: Tensor, places: int) -> Tensor:
    """(out, 1) float32: the step of each row."""
    return span.float()[:, None] * 2.0**-places


def in_storage(steps: Steps | None, alpha: Tensor, shift: Tensor) -> tuple[Numbers, Numbers]:
    """alpha (out, groups, b) and shift (out, groups) as they are stored; steps None: in halves."""
    if steps is None:
        return _halves(alpha, shift)
    alphas, shifts = steps.stored(alpha, shift)
    assert shifts is not None  # as there is one
    return alphas, shifts


def _halves(alpha: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """`half_coding` of a coding that has a shift."""
    alphas, shifts = half_coding(alpha, shift)
    assert shifts is not None  # as there is one
    return alphas, shifts
