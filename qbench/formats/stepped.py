"""Scales, shifts and the like as integers times a step per row.

A row of a weight has one span, and every group's numbers are whole multiples of a step:

    number = middle + k * span / 2^places,    rounded to the dtype of the span

Where a group has one number its code is k. The alphas of a group are a chain: the code of the first
is k_1, and that of each later one is k_i - floor(k_(i-1) / 2), since an alpha is about half of the
one before. `qbench.formats.snapping` chooses spans and codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from qbench.errors import StoreError
from qbench.formats.packing import axes, expect, pack, packed_length, unpack

MOST = 8  # bits of a code


@dataclass(frozen=True, eq=False)
class Stepped:
    """One or more numbers for every group of every row, as integers times a step per row.

    codes (uint8, (out, ceil(groups*sum(bits)/8))): a bit stream along the row, as
    `qbench.formats.packing` packs it: group by group, a code of each of `bits` after the other, the
    lowest bit first.
    span (float16 or float32, (out,)): the number that a code of 2^places stands for.
    bits: of the codes of a chain; or an int where a group has one number, and the tensor no axis
    for them. groups: number per row. signed: whether the code of a single number is in two's
    complement; in a chain, all codes but the first are. middle: the number of a code of 0.

    StoreError where parts do not fit.
    """

    codes: Tensor
    span: Tensor
    bits: tuple[int, ...] | int
    groups: int
    places: int
    signed: bool = False
    middle: float = 0.0

    def __post_init__(self) -> None:
        for width in (*self.widths, self.places):
            if type(width) is not int or not 1 <= width <= MOST:
                raise StoreError(
                    f"scales of {width!r} bits cannot be read; they must have 1 to {MOST} bits"
                )
        if not self.widths:
            raise StoreError(
                "scales without a number for each group cannot be read; quantize again"
            )
        (out,) = axes("span", self.span, 1)
        expect("span", self.span, (out,))
        row = packed_length(self.groups * sum(self.widths), 1)
        expect("codes of the scales", self.codes, (out, row), torch.uint8)

    @classmethod
    def pack(
        cls,
        multiples: Tensor,
        span: Tensor,
        bits: tuple[int, ...] | int,
        places: int,
        signed: bool = False,
        middle: float = 0.0,
    ) -> Stepped:
        """Pack multiples of the step, as `nearest` returns them, in the shape of `dequantize`."""
        columns = multiples[..., None] if isinstance(bits, int) else multiples
        half = (columns[..., :-1] / 2).floor()
        codes = columns - torch.nn.functional.pad(half, (1, 0))  # (out, groups, numbers)
        digits = []
        for code, width in zip(codes.long().unbind(-1), _widths(bits), strict=True):
            # A negative code's lowest bits are its two's complement.
            digits.append((code[..., None] >> torch.arange(width, device=codes.device)) & 1)
        stream = torch.cat(digits, -1).flatten(1)  # (out, groups * sum(bits))
        return cls(pack(stream, 1), span, bits, codes.shape[1], places, signed, middle)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `dequantize`."""
        size = (len(self.span), self.groups)
        return size if isinstance(self.bits, int) else (*size, len(self.bits))

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of each of a group's numbers."""
        return _widths(self.bits)

    def dequantize(self) -> Tensor:
        """The numbers, (out, groups, len(bits)) or (out, groups), in the dtype of the span."""
        width = sum(self.widths)
        stream = unpack(self.codes, 1, self.groups * width)  # (out, groups * width)
        digits = stream.unflatten(1, (self.groups, width)).float()
        # Whole numbers of at most 8 bits, exact in float32 as is their product with a float16 step.
        multiples: list[Tensor] = []
        for code in (digits @ self._digit_values(digits.device)).unbind(-1):
            before = multiples[-1] if multiples else torch.zeros_like(code)
            multiples.append(code + (before / 2).floor())
        step = self.span.float() * 2.0**-self.places
        numbers = torch.stack(multiples, -1) * step[:, None, None]  # (out, groups, numbers)
        numbers = (numbers + self.middle).to(self.span.dtype)
        return numbers[..., 0] if isinstance(self.bits, int) else numbers

    def _digit_values(self, device: torch.device) -> Tensor:
        """(sum(widths), numbers): what each bit of a group's stream adds to each of its codes."""
        columns = []
        for number, width in enumerate(self.widths):
            column = 2.0 ** torch.arange(width, device=device)
            if number or self.signed:
                column[-1] = -column[-1]
            columns.append(column[:, None])
        return torch.block_diag(*columns)


def nearest(in_steps: Tensor, bits: tuple[int, ...] | int, signed: bool = False) -> Tensor:
    """The nearest integers that the bits can hold.

    in_steps (float32, (out, groups, len(bits)) or (out, groups)): numbers in units of the step. In
    a chain, the number before limits which integers a number can have.
    """
    whole = in_steps.round()
    if isinstance(bits, int):
        low, high = limits(bits, signed)
        return whole.clamp_(low, high)
    chain = [whole[..., 0].clamp(*limits(bits[0], signed=False))]
    for number, width in enumerate(bits[1:], 1):
        half = (chain[-1] / 2).floor()
        low, high = limits(width, signed=True)
        chain.append((whole[..., number] - half).clamp_(low, high).add_(half).clamp_(min=0))
    return torch.stack(chain, -1)


def limits(bits: int, signed: bool) -> tuple[int, int]:
    """The least and the greatest code of so many bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def _widths(bits: tuple[int, ...] | int) -> tuple[int, ...]:
    return (bits,) if isinstance(bits, int) else bits


Numbers = Tensor | Stepped  # of the groups of a weight, as they are stored


@overload
def values(numbers: Numbers) -> Tensor: ...


@overload
def values(numbers: Numbers | None) -> Tensor | None: ...


def values(numbers: Numbers | None) -> Tensor | None:
    """The numbers as a tensor; None for None."""
    if isinstance(numbers, Stepped):
        return numbers.dequantize()
    return numbers


def expect_numbers(name: str, numbers: Numbers, shape: tuple[int, ...]) -> None:
    """StoreError unless the numbers have this shape and, as a tensor, a floating dtype."""
    if not isinstance(numbers, Stepped):
        expect(name, numbers, shape)
    elif numbers.shape != shape:
        raise StoreError(
            f"part {name!r} of a weight holds {numbers.shape} numbers; expected {shape}"
        )


def groups_of(name: str, numbers: Numbers, rank: int) -> int:
    """Numbers per row, or chains of them; StoreError unless a tensor has so many axes."""
    return numbers.groups if isinstance(numbers, Stepped) else axes(name, numbers, rank)[1]


def to_parts(name: str, numbers: Numbers | None, span: str) -> dict[str, Tensor]:
    """What is stored: part `name`, or `<name>_codes` and the span, whose part's name is given."""
    if numbers is None:
        return {}
    if isinstance(numbers, Stepped):
        return {f"{name}_codes": numbers.codes, span: numbers.span}
    return {name: numbers}


def to_spec(name: str, numbers: Numbers | None) -> dict[str, Any]:
    """What `from_parts` needs beside the tensors: bits and places of `Stepped` numbers, else {}.

    JSON-able.
    """
    if not isinstance(numbers, Stepped):
        return {}
    bits = numbers.bits if isinstance(numbers.bits, int) else list(numbers.bits)
    return {f"{name}_bits": bits, f"{name}_places": numbers.places}


def from_parts(
    name: str,
    tensors: Mapping[str, Tensor],
    spec: dict[str, Any],
    groups: int,
    span: str,
    signed: bool = False,
    middle: float = 0.0,
) -> Numbers | None:
    """The inverse of `to_parts` and `to_spec`, whose entries are taken out of `spec`.

    groups, signed, middle: see `Stepped`. None where no such part is there.
    """
    codes = tensors.get(f"{name}_codes")
    if codes is None:
        return tensors.get(name)
    if name in tensors:
        raise ValueError(f"{name} is there twice, as numbers and as codes")
    bits = spec.pop(f"{name}_bits")
    places = spec.pop(f"{name}_places")
    if isinstance(bits, list):
        bits = tuple(bits)
    return Stepped(codes, tensors[span], bits, groups, places, signed, middle)
