"""Binary codings whose numbers are fitted among those that can be stored.

As integers times a step per row (`qbench.formats.snapping`), a later alpha of few bits must lie
near half of the one before. In the best coding of a group it may be far from there. Then the
nearest numbers that can be stored are a poor coding, or the step of the whole row is larger. So
other codings are tried as well, each with the steps of all, and the best goes on in single steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from qbench.formats.snapping import stored_coding
from qbench.formats.stepped import Numbers
from qbench.methods.grids import row_slices, where_rows
from qbench.methods.sorted_groups import SortedGroups
from qbench.methods.stored_numbers import Steps

PASSES = 2  # over the numbers of a group; a third lowers the error by about 0.1 %
CHUNK = 1 << 20  # weights at a time on a CPU: bounds the temporaries


class Fit(NamedTuple):
    """Numbers that can be stored, float32: error, shift (out, groups), alpha (out, groups, b)."""

    error: Tensor
    alpha: Tensor
    shift: Tensor

    def where(self, chosen: Tensor, other: Fit) -> Fit:
        """This fit where `chosen` (out, groups) or (out, 1), else the other one."""
        return Fit(*where_rows(chosen, self, other))


def storable_coding(
    weight: Tensor, codings: Sequence[tuple[Tensor, Tensor]], scale_bits: int, shifted: bool = True
) -> tuple[Numbers, Numbers | None]:
    """Numbers of least squared error that are found for weight (out, in) float32.

    codings: alpha (out, groups, b), descending, and shift (out, groups) each, the best first.
    shifted: whether a shift is stored. In half precision, the best as `stored_coding` gives it.
    """
    tried: list[Steps] = []
    for alpha, shift in codings:
        numbers = stored_coding(alpha, shift if shifted else None, scale_bits)
        steps = Steps.of(*numbers)
        if not tried and steps is None:
            return numbers
        if steps is not None:
            tried.append(steps)
    first = tried[0]
    spans = [steps.span for steps in tried if steps.span.dtype == first.span.dtype]
    groups = codings[0][1].shape[1]
    columns = []
    for part in row_slices(weight, CHUNK):
        group = SortedGroups.of(weight[part].reshape(-1, weight.shape[1] // groups))
        here = [(alpha[part], shift[part]) for alpha, shift in codings]
        columns.append(_fitted(group, [first.with_span(span[part]) for span in spans], here))
    span, alpha, shift = (torch.cat(column) for column in zip(*columns, strict=True))
    return first.with_span(span).stored(alpha, shift)


def _fitted(
    group: SortedGroups, tried: Sequence[Steps], codings: Sequence[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The span (out,) of the best steps for each row, and alpha and shift in these."""
    fits = []
    for steps in tried:
        snapped = [_snapped(group, steps, alpha, shift) for alpha, shift in codings]
        fits.append(reduce(_better, snapped))
    best = fits[0]
    span = tried[0].span
    for steps, fit in zip(tried[1:], fits[1:], strict=True):
        better = fit.error.sum(1) < best.error.sum(1)
        span = torch.where(better, steps.span, span)
        best = fit.where(better[:, None], best)
    best = _descended(group, tried[0].with_span(span), best)
    return span, best.alpha, best.shift


def _better(first: Fit, second: Fit) -> Fit:
    """Of every group the one with the smaller error; `first` where they are equal."""
    return second.where(second.error < first.error, first)


def _snapped(group: SortedGroups, steps: Steps, alpha: Tensor, shift: Tensor) -> Fit:
    """The nearest numbers that can be stored, and their squared error with the nearest levels."""
    alpha, shift = steps.snapped(alpha, shift)
    error = group.error(alpha.flatten(0, 1).double(), shift.flatten().double())
    return Fit(error.view_as(shift), alpha, shift)


def _descended(group: SortedGroups, steps: Steps, fit: Fit) -> Fit:
    """Each number in turn a step up or down wherever that lowers the error of its group."""
    numbers = fit.alpha.shape[2] + bool(steps.shift_bits)
    for _ in range(PASSES):
        for number in range(numbers):
            for step in (steps.step, -steps.step):
                moved = torch.cat([fit.alpha, fit.shift[..., None]], -1)
                moved[..., number] += step
                fit = _better(fit, _snapped(group, steps, moved[..., :-1], moved[..., -1]))
    return fit
