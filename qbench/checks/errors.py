"""Promises about the size of the error: against plain rounding, and the method's own start."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from qbench.checks.samples import (
    CASES,
    GROUP,
    IN,
    OUT,
    SMALL_ROW,
    SMALLNESS,
    bits_of,
    output_error,
    quantize_sample,
    sample_stats,
    sample_weight,
    small_row_weight,
    weight_error,
    white_inputs,
)
from qbench.checks.tiny_models import GROUP_SIZE, WHAT, tiny_block
from qbench.checks.verdict import Broke, NotApplicable
from qbench.contracts import BlockResult, Scheme, verb_of
from qbench.errors import QbenchError
from qbench.models.blocks import linears, read_weight
from qbench.registry import get_method

ABOVE_ROUNDING = 1.05  # of the squared error of rounding on the grid from minimum to maximum
ABOVE_SCALED = 1.1  # of the squared error of a weight, relative to its scale
ABOVE_LARGE = 2  # of the squared error of a small row, relative to its size
EXPONENTS = (-30, -20, -12, -9, -7, 7, 14, 17, 20, 30)  # of ten, by which a weight is scaled
ABOVE_START = 1.15  # of the held-out loss: what is kept was chosen on other tokens


def check_error_falls_with_bits(method: Any) -> None:
    """More bits, less error (in the metric of the inputs' Hessian where the method sees it)."""
    _quantizes(method)
    errors = [_error(method, Scheme(bits, GROUP)) for bits in bits_of(method)]
    if any(after > before for before, after in pairwise(errors)):
        texts = [f"{error:.4g}" for error in errors]
        raise Broke(f"errors at {bits_of(method)} bits are {texts}")


def check_error_within_rounding(method: Any) -> None:
    """At the same bits and groups the error is at most that of plain rounding, on every shape.

    Plain rounding takes the grid from the minimum to the maximum, which any method can; 5 % are
    allowed. Inputs are white, so that the error of the output is that of the weight. Binary coding
    is held to it at 2 bits alone: from 3 bits on greedy planes are worse than an even grid.
    """
    _quantizes(method)
    if verb_of(method) == "quantize_block":
        raise NotApplicable("the method is judged by blocks")
    plain = get_method("rtn", clip="none")
    widths = (2, 3, 4) if method.format == "uniform" else (2,)
    for case in CASES:
        weight = sample_weight(case.out, case.in_features)
        inputs = white_inputs(case.in_features)
        for bits in widths:
            if not method.bits[0] <= bits <= method.bits[1]:
                continue
            scheme = Scheme(bits, case.group_size)
            error = weight_error(quantize_sample(method, scheme, weight, inputs), weight)
            rounding = weight_error(quantize_sample(plain, scheme, weight), weight)
            if not error <= ABOVE_ROUNDING * rounding:
                raise Broke(
                    f"{case} at {bits} bits: squared error {error:.4g}, {error / rounding:.3g} "
                    f"times that of plain rounding; at most {ABOVE_ROUNDING} times is allowed"
                )


def check_beats_rounding_where_it_calibrates(method: Any) -> None:
    """A method that sees the inputs has a smaller output error than round-to-nearest."""
    if verb_of(method) == "quantize_weight":
        raise NotApplicable("the method sees no inputs")
    scheme = Scheme(max(3, method.bits[0]), GROUP)
    error = output_error(quantize_sample(method, scheme), sample_weight(), sample_stats())
    plain = quantize_sample(get_method("rtn"), scheme)
    rounding = output_error(plain, sample_weight(), sample_stats())
    if not error < rounding:
        raise Broke(f"tr(dW H dW^T) is {error:.4g}, and {rounding:.4g} by rounding")


def check_block_loss_on_held_out_inputs(method: Any) -> None:
    """On inputs that the method did not see a block is no worse than by rounding or at its start.

    The start is the method with no training at all, where it has `epochs`; 15 % are allowed, as the
    state that is kept was chosen on other tokens.
    """
    if verb_of(method) != "quantize_block":
        raise NotApplicable("the method sees no block")
    scheme = Scheme(bits_of(method)[0], GROUP_SIZE)
    for family in ("llama", "gpt2"):
        block = tiny_block(family)
        loss = block.held_out_loss(block.quantized_by(method, scheme))
        rounding = block.held_out_loss(rounded(block.block, scheme))
        if not loss <= rounding:
            raise Broke(f"{WHAT[family]}: held-out loss {loss:.4g}, and {rounding:.4g} by rounding")
        if not hasattr(method, "epochs"):
            continue
        start = block.held_out_loss(block.quantized_by(replace(method, epochs=0), scheme))
        if not loss <= ABOVE_START * start:
            raise Broke(f"{WHAT[family]}: held-out loss {loss:.4g}, and {start:.4g} at the start")


def check_zeros_and_constants(method: Any) -> None:
    """A weight of zeros stays zero, and one of a single value stays within 1 %."""
    scheme = Scheme(bits_of(method)[-1], GROUP)
    for value in (0.0, 0.37, -1e-3):
        dense = quantize_sample(method, scheme, torch.full((OUT, IN), value)).dequantize()
        worst = (dense - value).abs().max().item()
        if not worst <= 0.01 * abs(value):
            raise Broke(f"a weight of {value} everywhere comes back with an error of {worst:.3g}")


def check_outliers(method: Any) -> None:
    """An outlier of 1e4 gives finite values, and spares the other rows."""
    weight = sample_weight()
    weight[3, 5] = 1e4
    scheme = Scheme(bits_of(method)[-1], GROUP)
    with_outlier = quantize_sample(method, scheme, weight).dequantize()
    without = quantize_sample(method, scheme).dequantize()
    if not torch.isfinite(with_outlier).all():
        raise Broke("values are not finite")
    other = torch.arange(OUT) != 3
    before = (without - weight)[other].square().sum()
    after = (with_outlier - weight)[other].square().sum()
    if after > 2 * before:
        times = f"{after / before:.3g}"
        raise Broke(
            f"an outlier in one row makes the error of the other rows {times} times as large"
        )


def check_extreme_weights(method: Any) -> None:
    """At any scale of the weight the error follows the scale, or the weight is refused by name."""
    _quantizes(method)
    weight = sample_weight()
    inputs = white_inputs(IN)
    scheme = Scheme(max(3, method.bits[0]), GROUP)
    expected = weight_error(quantize_sample(method, scheme, weight, inputs), weight)
    for exponent in EXPONENTS:
        scaled = weight * 10.0**exponent
        try:
            dense = quantize_sample(method, scheme, scaled, inputs).dequantize()
        except QbenchError:
            continue
        error = ((dense.double() - scaled.double()) / 10.0**exponent).square().sum().item()
        if not error <= ABOVE_SCALED * expected:
            raise Broke(
                f"with weights of about 1e{exponent} the relative squared error is "
                f"{error / expected:.3g} times that at 1; at most {ABOVE_SCALED} is allowed"
            )


def check_small_rows(method: Any) -> None:
    """A row that is a millionth of the others has, relative to its size, no larger error.

    It has the error that it has where it is as large as they are; twice its square is allowed.
    """
    _quantizes(method)
    inputs = white_inputs(IN)
    for bits in sorted({bits_of(method)[0], bits_of(method)[-1]}):
        scheme = Scheme(bits, GROUP)
        errors = [
            _error_of_row(method, scheme, weight, inputs)
            for weight in (sample_weight(), small_row_weight())
        ]
        if not errors[1] <= ABOVE_LARGE * errors[0]:
            raise Broke(
                f"at {bits} bits a row that is {SMALLNESS:g} times as large as the others has a "
                f"relative squared error of {errors[1]:.3g}, and {errors[0]:.3g} where it is as "
                f"large as they are; at most {ABOVE_LARGE} times that is allowed"
            )


def rounded(block: Any, scheme: Scheme) -> BlockResult:
    """Every linear layer of a block rounded on the grid from its minimum to its maximum."""
    plain = get_method("rtn", clip="none")
    layers = linears(block)
    weights = {
        name: plain.quantize_weight(read_weight(layer), scheme) for name, layer in layers.items()
    }
    return BlockResult(weights)


def _error(method: Any, scheme: Scheme) -> float:
    quantized = quantize_sample(method, scheme)
    if verb_of(method) == "quantize_weight":
        return weight_error(quantized, sample_weight())
    return output_error(quantized, sample_weight(), sample_stats())


def _error_of_row(method: Any, scheme: Scheme, weight: Tensor, inputs: Tensor) -> float:
    """The squared error of `SMALL_ROW` by its squared norm."""
    row = weight[SMALL_ROW].double()
    dense = quantize_sample(method, scheme, weight, inputs).dequantize()[SMALL_ROW].double()
    return ((dense - row).square().sum() / row.square().sum()).item()


def _quantizes(method: Any) -> None:
    if method.format == "dense":
        raise NotApplicable("the method does not quantize")
