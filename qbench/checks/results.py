"""Promises about what comes back, at every call: the declared format, the shape, the size."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qbench.checks.samples import (
    IN,
    bits_of,
    equal,
    quantize_sample,
    sample_weight,
    white_inputs,
)
from qbench.checks.tour import Call, answered, tour
from qbench.checks.verdict import Broke, NotApplicable
from qbench.contracts import BlockResult, Scheme, verb_of
from qbench.errors import QbenchError
from qbench.formats import (
    FORMATS,
    Binary,
    Lattice,
    RotatedBinary,
    Uniform,
    bits_per_weight,
    from_tensors,
)
from qbench.formats.packing import as_stored, packed_length
from qbench.formats.snapping import half_coding


def check_answers_every_call(method: Any) -> None:
    """No error on any shape, scheme and block: Llama, GPT-2's Conv1D, biases, experts."""
    for call in tour(method):
        if call.error is not None:
            raise Broke(f"{call.where}: raised {call.error}")


def check_shape_and_format(method: Any) -> None:
    """The result has the weight's shape, the declared format, and finite values."""
    for call in answered(method):
        expect_shape_and_format(method, call)


def expect_promises(method: Any, call: Call) -> None:
    """Broke where one call alone shows that a promise was broken: of its result, or its effects."""
    for sentence in call.changes.values():
        raise Broke(sentence)
    expect_shape_and_format(method, call)
    if method.format != "dense":
        for own, place, weight in _weights(call):
            _expect_bits(own, place, weight)
            _expect_groups(own, place, weight)
            _expect_no_offset(own, place, weight)


def expect_shape_and_format(method: Any, call: Call) -> None:
    """Broke where a result is not what the method's verb is to give."""
    if verb_of(method) == "quantize_block":
        _expect_block_result(call)
    for layer, weight in call.weights().items():
        _expect_weight(method, call, layer, weight)


def _expect_block_result(call: Call) -> None:
    if not isinstance(call.result, BlockResult):
        raise Broke(f"{call.where}: gave a {type(call.result).__name__}, not a BlockResult")
    if call.result.weights.keys() != call.shapes.keys():
        odd = sorted(call.result.weights.keys() ^ call.shapes.keys())
        raise Broke(f"{call.where}: the layers differ from the block's in {odd}")
    for name, value in call.result.parameters.items():
        if not isinstance(value, Tensor) or not torch.isfinite(value).all():
            raise Broke(f"{call.where}: parameter {name} is no tensor, or not finite")


def _expect_weight(method: Any, call: Call, layer: str, weight: Any) -> None:
    place = call.place(layer)
    expected = FORMATS[method.format]
    # A method that rotates declares the coding that is rotated.
    coding = weight.coding if type(weight) is RotatedBinary else weight
    if type(coding) is not expected:
        raise Broke(
            f"{place}: gave a {type(weight).__name__}, not the {expected.__name__} declared"
        )
    shape = call.shapes[layer]
    dense = weight.dequantize()
    if tuple(weight.shape) != shape or tuple(dense.shape) != shape:
        raise Broke(f"{place}: shape {tuple(weight.shape)}, dequantized {tuple(dense.shape)}")
    if dense.dtype != torch.float32:
        raise Broke(f"{place}: dequantize gives {dense.dtype}, not float32")
    parts = weight.to_tensors().values()
    if not all(torch.isfinite(part).all() for part in (dense, *parts)):
        raise Broke(f"{place}: values are not finite")


def check_no_more_bits_than_asked(method: Any) -> None:
    """Codes of the scheme's bits, and per group no more than the format's scales and zero point.

    A scale counts 16 bits, or 32 where float16 would distort the part (`as_stored`).
    """
    for call, place, weight in _coded(method):
        _expect_bits(call, place, weight)


def _expect_bits(call: Call, place: str, weight: Any) -> None:
    if weight.bits != call.scheme.bits:
        raise Broke(f"{place}: codes have {weight.bits} bits")
    measured = bits_per_weight([weight])["total"]
    allowed = allowed_bits(weight, call.scheme)
    if measured > allowed + 1e-9:
        raise Broke(f"{place}: takes {measured:.4g} bits a weight, {allowed:.4g} are due")


def allowed_bits(weight: Uniform | Binary | RotatedBinary | Lattice, scheme: Scheme) -> float:
    """Bits per weight that a format is entitled to under a scheme."""
    out, columns = weight.shape
    if isinstance(weight, RotatedBinary):
        return allowed_bits(weight.coding, scheme) + 8 * packed_length(columns, 1) / (out * columns)
    groups = out * (columns // scheme.group_length(columns))
    if isinstance(weight, Uniform):
        bits = 8 * out * packed_length(columns, scheme.bits) + groups * _width(weight.scale)
        if weight.zero_point is not None:
            bits += groups * _width(weight.zero_point, beside=1.0)
    elif isinstance(weight, Binary):
        bits = 8 * out * packed_length(columns, 1) * scheme.bits
        alpha = weight.alpha.float()
        halves = half_coding(alpha, None if weight.shift is None else weight.shift.float())
        numbers = (groups * scheme.bits, groups)
        bits += sum(
            8 * count * part.element_size()
            for count, part in zip(numbers, halves, strict=True)
            if part is not None
        )
    else:
        bits = 8 * out * packed_length(columns, scheme.bits)
        for part in (weight.map, weight.offset, weight.su, weight.sv):
            if part is not None:
                bits += part.numel() * _width(part)
    return bits / (out * columns)


def _width(part: Tensor, beside: float = 0.0) -> int:
    """Bits per number of a part as it should be stored; a packed zero point is granted 16."""
    if not part.is_floating_point():
        return 16
    return 8 * as_stored(part.float(), beside).element_size()


def check_group_size_honoured(method: Any) -> None:
    """Groups are as long as asked, and each has a grid of its own."""
    for call, place, weight in _coded(method):
        if isinstance(weight, Lattice):
            raise NotApplicable("the format has no groups")
        _expect_groups(call, place, weight)
    bits = bits_of(method)[len(bits_of(method)) // 2]
    # Every other group is 50 times smaller: one grid for all would round it to almost nothing.
    sizes = torch.tensor([1.0, 0.02]).repeat_interleave(16).repeat(IN // 32)
    weight = sample_weight() * sizes
    small = sizes < 1
    errors = []
    for group_size in (16, None):
        scheme = Scheme(bits, group_size)
        dense = quantize_sample(method, scheme, weight, white_inputs(IN)).dequantize()
        errors.append((dense - weight)[:, small].double().square().sum().item())
    if errors[0] > 0.1 * errors[1]:
        raise Broke(
            f"groups of 16 leave small groups an error of {errors[0]:.3g}, one group per row "
            f"{errors[1]:.3g}: the groups share a grid"
        )


def _expect_groups(call: Call, place: str, weight: Any) -> None:
    if isinstance(weight, Lattice):
        return  # the format has none
    expected = call.scheme.group_length(weight.shape[1])
    if weight.group_size != expected:
        raise Broke(f"{place}: groups of {weight.group_size}, not of {expected}")


def check_symmetric_honoured(method: Any) -> None:
    """A symmetric scheme gives a grid without zero point or shift."""
    if not method.symmetric:
        raise NotApplicable("the method declares no symmetric grids")
    for call, place, weight in _coded(method):
        _expect_no_offset(call, place, weight)


def _expect_no_offset(call: Call, place: str, weight: Any) -> None:
    offset = getattr(weight, "zero_point", getattr(weight, "shift", None))
    if call.scheme.symmetric and offset is not None:
        raise Broke(f"{place}: the result has a zero point or a shift")


def check_stored_exactly(method: Any) -> None:
    """to_tensors and from_tensors are exact, and the bits are those of the bytes."""
    for call in answered(method):
        for layer, weight in call.weights().items():
            place = call.place(layer)
            try:
                spec = json.loads(json.dumps(weight.spec()))
            except TypeError as error:
                raise Broke(f"{place}: its spec is not JSON-able: {error}") from None
            again = from_tensors(weight.format, weight.to_tensors(), spec)
            if not (equal(weight, again) and torch.equal(weight.dequantize(), again.dequantize())):
                raise Broke(f"{place}: what is read differs from what was written")
            out, columns = call.shapes[layer]
            stored = 8 * sum(part.nbytes for part in weight.to_tensors().values()) / (out * columns)
            if abs(stored - bits_per_weight([weight])["total"]) > 1e-9:
                raise Broke(f"{place}: {stored} bits are stored, and others are reported")


def check_refuses_bad_schemes(method: Any) -> None:
    """Groups that do not divide the inputs, or are longer, are refused in one sentence."""
    if method.format == "dense":
        raise NotApplicable("an unquantized weight has no groups")
    for group_size in (100, 2 * IN):
        scheme = Scheme(bits_of(method)[0], group_size)
        try:
            quantize_sample(method, scheme)
        except QbenchError:
            continue
        raise Broke(f"{scheme} was accepted for {IN} inputs")


def check_half_precision_weights(method: Any) -> None:
    """A weight in float16 or bfloat16 gives what the same numbers give in float32."""
    if verb_of(method) == "quantize_block":
        raise NotApplicable("blocks are calibrated in float32, in which models are loaded")
    scheme = Scheme(bits_of(method)[0], 32)
    for dtype in (torch.float16, torch.bfloat16):
        weight = sample_weight().to(dtype)
        quantized = quantize_sample(method, scheme, weight).dequantize()
        expected = quantize_sample(method, scheme, weight.float()).dequantize()
        if not torch.equal(quantized, expected):
            raise Broke(f"a weight in {dtype} comes back otherwise than in float32")


def check_strided_weights(method: Any) -> None:
    """A weight that is not contiguous gives what its contiguous copy gives."""
    if verb_of(method) == "quantize_block":
        raise NotApplicable("the method sees blocks; GPT-2's keep transposed weights in every tour")
    weight = sample_weight()
    wide = torch.stack([weight, torch.full_like(weight, 7.0)], -1)
    for group_size in (32, None):  # with one group in a row its groups have the weight's strides
        scheme = Scheme(bits_of(method)[0], group_size)
        expected = quantize_sample(method, scheme, weight).dequantize()
        for title, strided in (("transposed", weight.T.contiguous().T), ("strided", wide[..., 0])):
            quantized = quantize_sample(method, scheme, strided).dequantize()
            if not torch.equal(quantized, expected):
                raise Broke(f"a {title} weight comes back otherwise than its contiguous copy")


def _coded(method: Any) -> Iterator[tuple[Call, str, Any]]:
    """Every quantized weight of the tour with its call and its place."""
    if method.format == "dense":
        raise NotApplicable("an unquantized weight has neither codes nor groups")
    for call in answered(method):
        yield from _weights(call)


def _weights(call: Call) -> Iterator[tuple[Call, str, Any]]:
    """Every quantized weight of a call with the call, as that of its layer alone, and its place."""
    for layer, weight in call.weights().items():
        own = replace(call, scheme=call.scheme.of_layer(layer) or call.scheme)
        yield own, call.place(layer), weight
