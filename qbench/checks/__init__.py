"""The promises that every method keeps: run by our tests over all methods, and by `qbench check` over anyone's.

A check takes a method and returns nothing, or raises `Broke` with one sentence. Weights are
heavy-tailed, with rows of very different size, a dead input and a group of zeros.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from qbench.contracts import BlockInputs, LinearStats, Scheme, WeightFormat, check_scheme, verb_of
from qbench.errors import QbenchError
from qbench.formats import FORMATS, bits_per_weight, from_tensors
from qbench.registry import get_method, method_class

OUT, IN, GROUP = 48, 192, 32
Check = Callable[[Any], None]


class Broke(Exception):
    """A promise that was not kept."""


def run_checks(name: str) -> Iterator[tuple[str, str | None]]:
    """(title, None or what is wrong) for every check of the method called `name`, but for its declared exceptions."""
    excused = getattr(method_class(name), "exceptions", {})
    for check in CHECKS:
        title = (check.__doc__ or check.__name__).strip().rstrip(".")
        if check.__name__ in excused:
            yield f"{title}: excused, {excused[check.__name__]}", None
            continue
        try:
            check(get_method(name))
        except Broke as broken:
            yield title, str(broken)
        except Exception as error:  # a foreign method may raise anything: that is the finding
            yield title, f"raised {type(error).__name__}: {error}"
        else:
            yield title, None


def check_is_a_value(method: Any) -> None:
    """A frozen dataclass that declares itself and implements one verb."""
    verb_of(method)
    kind = type(method)
    if not getattr(getattr(kind, "__dataclass_params__", None), "frozen", False):
        raise Broke(f"{kind.__name__} is not a frozen dataclass")
    if method != kind(**dataclasses.asdict(method)):
        raise Broke("two methods with equal parameters are not equal")
    if method.format not in FORMATS:
        raise Broke(f"format {method.format!r} is none of {', '.join(FORMATS)}")


def check_shape_and_format(method: Any) -> None:
    """The result has the weight's shape, the declared format, and finite values."""
    for bits in _bits(method):
        found = quantize(method, Scheme(bits, GROUP))
        if found.format != method.format or tuple(found.shape) != (OUT, IN):
            raise Broke(
                f"{bits} bits: format {found.format!r}, shape {tuple(found.shape)}, not {method.format!r} {(OUT, IN)}"
            )
        dense = found.dequantize()
        if (
            dense.shape != (OUT, IN)
            or dense.dtype != torch.float32
            or not torch.isfinite(dense).all()
        ):
            raise Broke(
                f"{bits} bits: dequantize gives {dense.dtype} {tuple(dense.shape)}, or values that are not finite"
            )


def check_inputs_untouched(method: Any) -> None:
    """Neither the weight nor the statistics are changed."""
    weight, stats = sample_weight(), sample_stats()
    before = weight.clone(), stats.hessian.clone()
    quantize(method, Scheme(_bits(method)[0], GROUP), weight, stats)
    if not (torch.equal(weight, before[0]) and torch.equal(stats.hessian, before[1])):
        raise Broke("the weight or the Hessian was changed in place")


def check_deterministic(method: Any) -> None:
    """The same input gives the same bits, whatever the global random state."""
    scheme = Scheme(_bits(method)[0], GROUP)
    torch.manual_seed(1)
    first = quantize(method, scheme)
    state = torch.get_rng_state()
    second = quantize(method, scheme)
    if not torch.equal(state, torch.get_rng_state()):
        raise Broke("the global random state was used; take a torch.Generator with a seed")
    if not equal(first, second):
        raise Broke("two runs differ")


def check_error_falls_with_bits(method: Any) -> None:
    """More bits, less error (in the metric of the inputs' Hessian where the method sees it)."""
    if method.format == "dense":
        return
    errors = [output_error(method, quantize(method, Scheme(bits, GROUP))) for bits in _bits(method)]
    if any(after > before for before, after in pairwise(errors)):
        raise Broke(f"errors at {_bits(method)} bits are {[f'{error:.4g}' for error in errors]}")


def check_beats_rounding_where_it_calibrates(method: Any) -> None:
    """A method that sees the inputs has a smaller output error than round-to-nearest."""
    if verb_of(method) == "quantize_weight":
        return
    scheme = Scheme(max(3, method.bits[0]), GROUP)
    error, plain = (output_error(method, quantize(m, scheme)) for m in (method, get_method("rtn")))
    if error >= plain:
        raise Broke(f"tr(dW H dW^T) is {error:.4g}, and {plain:.4g} by rounding")


def check_zeros_and_constants(method: Any) -> None:
    """A weight of zeros stays zero, and one of a single value stays within 1 %."""
    scheme = Scheme(_bits(method)[-1], GROUP)
    for value in (0.0, 0.37, -1e-3):
        found = quantize(method, scheme, torch.full((OUT, IN), value)).dequantize()
        worst = (found - value).abs().max().item()
        if not worst <= 0.01 * abs(value):
            raise Broke(f"a weight of {value} everywhere comes back with an error of {worst:.3g}")


def check_outliers(method: Any) -> None:
    """An outlier of 1e4 gives finite values, and spares the other rows."""
    weight = sample_weight()
    weight[3, 5] = 1e4
    scheme = Scheme(_bits(method)[-1], GROUP)
    found, usual = (
        quantize(method, scheme, weight).dequantize(),
        quantize(method, scheme).dequantize(),
    )
    if not torch.isfinite(found).all():
        raise Broke("values are not finite")
    other = torch.arange(OUT) != 3
    before, after = ((part - weight)[other].square().sum() for part in (usual, found))
    if after > 2 * before:
        raise Broke(
            f"an outlier in one row makes the error of the other rows {after / before:.3g} times as large"
        )


def check_stored_exactly(method: Any) -> None:
    """to_tensors and from_tensors are exact, and the bits are those of the bytes."""
    for group in (GROUP, None):
        found = quantize(method, Scheme(_bits(method)[0], group))
        again = from_tensors(found.format, found.to_tensors(), found.spec())
        if not (equal(found, again) and torch.equal(found.dequantize(), again.dequantize())):
            raise Broke(f"group {group}: what is read differs from what was written")
        stored = 8 * sum(tensor.nbytes for tensor in found.to_tensors().values()) / (OUT * IN)
        if abs(stored - bits_per_weight([found])["total"]) > 1e-9:
            raise Broke(f"group {group}: {stored} bits are stored, and others are reported")


def check_refuses_bad_schemes(method: Any) -> None:
    """Bits out of range and groups that do not divide are refused in one sentence."""
    for scheme in (
        Scheme(method.bits[1] + 1, GROUP) if method.bits[1] < 16 else None,
        Scheme(_bits(method)[0], 100),
    ):
        if scheme is None or method.format == "dense":
            continue
        try:
            check_scheme(method, scheme)
            quantize(method, scheme)
        except QbenchError:
            continue
        raise Broke(f"{scheme} was accepted for {IN} inputs")


CHECKS: tuple[Check, ...] = (
    check_is_a_value,
    check_shape_and_format,
    check_inputs_untouched,
    check_deterministic,
    check_error_falls_with_bits,
    check_beats_rounding_where_it_calibrates,
    check_zeros_and_constants,
    check_outliers,
    check_stored_exactly,
    check_refuses_bad_schemes,
)


def quantize(
    method: Any, scheme: Scheme, weight: Tensor | None = None, stats: LinearStats | None = None
) -> WeightFormat:
    """One weight by whichever verb the method implements, with sample inputs where none are given."""
    weight = sample_weight() if weight is None else weight
    verb = verb_of(method)
    if verb == "quantize_weight":
        return method.quantize_weight(weight, scheme)
    if verb == "quantize_linear":
        return method.quantize_linear(weight, sample_stats() if stats is None else stats, scheme)
    linear = torch.nn.utils.skip_init(torch.nn.Linear, IN, len(weight), bias=False)
    linear.weight.data.copy_(weight)
    block = torch.nn.Sequential(linear)
    hidden = sample_inputs().view(8, -1, IN)
    inputs = BlockInputs([hidden], [hidden], [((), {})])
    with torch.no_grad():
        found = method.quantize_block(block, inputs, [inputs.run(block, hidden, 0)], scheme)
    if not torch.equal(linear.weight, weight):
        raise Broke("the block was changed in place")
    return found.weights["0"]


def sample_weight() -> Tensor:
    """(OUT, IN) float32, heavy-tailed, rows of sizes 0.01 to 1, one group of zeros."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, IN, generator=generator) * torch.logspace(-2, 0, OUT)[:, None]
    weight *= torch.exp(0.3 * torch.randn(OUT, IN, generator=generator))
    weight[7, :GROUP] = 0
    return weight


def sample_inputs() -> Tensor:
    """(1024, IN) float32, correlated; input 11 is always zero."""
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(24, IN, generator=generator)
    inputs = torch.randn(1024, 24, generator=generator) @ mixing + torch.randn(
        1024, IN, generator=generator
    )
    inputs[:, 11] = 0
    return inputs


def sample_stats() -> LinearStats:
    """The statistics of `sample_inputs`."""
    inputs = sample_inputs()
    return LinearStats(2 / len(inputs) * inputs.T @ inputs, len(inputs))


def output_error(method: Any, found: WeightFormat) -> float:
    """tr(dW H dW^T) for methods that calibrate, the squared error of the weight for the others; float64."""
    difference = (found.dequantize() - sample_weight()).double()
    if verb_of(method) == "quantize_weight":
        return difference.square().sum().item()
    return ((difference @ sample_stats().hessian.double()) * difference).sum().item()


def equal(a: WeightFormat, b: WeightFormat) -> bool:
    """Bit for bit."""
    left, right = a.to_tensors(), b.to_tensors()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def _bits(method: Any) -> list[int]:
    """Up to four bit-widths of the supported range, ascending."""
    low, high = method.bits
    return [bits for bits in (2, 3, 4, 6) if low <= bits <= high] or [low]
