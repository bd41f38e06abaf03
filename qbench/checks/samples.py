"""Weights and inputs on which methods are checked, and one call of whichever verb a method has.

Weights are heavy-tailed, with rows of very different size and a group of zeros; inputs are
correlated, and one of them is always zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from qbench.checks.verdict import Broke
from qbench.contracts import BlockInputs, LinearStats, Scheme, WeightFormat, verb_of

OUT, IN, GROUP = 48, 192, 32
SMALL_ROW = 24  # of `small_row_weight`
SMALLNESS = 1e-6  # of that row
BATCHES = 8  # of the inputs of a block that is a single linear layer


@dataclass(frozen=True)
class Case:
    """A weight (out, in_features) and the group size of its scheme; None is one group per row."""

    out: int
    in_features: int
    group_size: int | None

    def __str__(self) -> str:
        """Shape and group size, for people."""
        return f"{self.out}x{self.in_features}, group_size={self.group_size}"


CASES = (
    Case(OUT, IN, GROUP),
    Case(96, 64, 16),  # more outputs than inputs
    Case(64, 64, None),  # square: a transposed result has the right shape
    Case(7, 96, 32),  # an odd number of rows, which fills no byte and no block
)


def sample_weight(out: int = OUT, in_features: int = IN) -> Tensor:
    """(out, in_features) float32, heavy-tailed, rows of size 0.01 to 1; row 7 begins with zeros."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-2, 0, out)
    weight = torch.randn(out, in_features, generator=generator) * sizes[:, None]
    weight *= torch.exp(0.3 * torch.randn(out, in_features, generator=generator))
    weight[7:8, :GROUP] = 0
    return weight


def small_row_weight() -> Tensor:
    """`sample_weight`, one row a millionth of what it is there, as that of a unit that is dead."""
    weight = sample_weight()
    weight[SMALL_ROW] *= SMALLNESS
    return weight


def sample_inputs(in_features: int = IN) -> Tensor:
    """(1024, in_features) float32, correlated; input 11 is always zero."""
    generator = torch.Generator().manual_seed(1)
    # 24 factors behind all inputs, and noise of each: the Hessian is far from diagonal, but not
    # singular beside the input that is always zero.
    mixing = torch.randn(24, in_features, generator=generator)
    inputs = torch.randn(1024, 24, generator=generator) @ mixing
    inputs += torch.randn(1024, in_features, generator=generator)
    inputs[:, 11] = 0
    return inputs


def white_inputs(in_features: int) -> Tensor:
    """(1024, in_features) with orthogonal columns: the Hessian is a multiple of the identity."""
    inputs = torch.randn(1024, in_features, generator=torch.Generator().manual_seed(3))
    columns: Tensor = torch.linalg.qr(inputs).Q
    # Q^T Q = I, so that 2/1024 X^T X = 2 I
    return columns * 1024**0.5


def statistics(inputs: Tensor) -> LinearStats:
    """The second moments of (tokens, in_features) inputs."""
    return LinearStats(2 / len(inputs) * inputs.T @ inputs, len(inputs))


def sample_stats(in_features: int = IN) -> LinearStats:
    """The statistics of `sample_inputs`."""
    return statistics(sample_inputs(in_features))


def sample_arguments(
    method: Any, scheme: Scheme, weight: Tensor, inputs: Tensor
) -> tuple[Any, ...]:
    """What the method's verb is called with for one weight (out, in) and inputs (tokens, in).

    A method of blocks sees a block of a single linear layer.
    """
    verb = verb_of(method)
    if verb == "quantize_weight":
        return weight, scheme
    if verb == "quantize_linear":
        return weight, statistics(inputs), scheme
    linear = nn.utils.skip_init(nn.Linear, weight.shape[1], len(weight), bias=False)
    linear.weight.data.copy_(weight)
    block = nn.Sequential(linear)
    hidden = inputs.view(BATCHES, -1, weight.shape[1])
    calibration = BlockInputs([hidden], [hidden], [((), {})])
    with torch.no_grad():
        target = calibration.run(block, hidden, 0)
    return block, calibration, [target], scheme


def quantize_sample(
    method: Any, scheme: Scheme, weight: Tensor | None = None, inputs: Tensor | None = None
) -> WeightFormat:
    """One weight by whichever verb the method has, with sample tensors where none are given."""
    if weight is None:
        weight = sample_weight()
    if inputs is None:
        inputs = sample_inputs(weight.shape[1])
    arguments = sample_arguments(method, scheme, weight, inputs)
    verb: Callable[..., Any] = getattr(method, verb_of(method))
    with torch.no_grad():
        result = verb(*arguments)
    if verb_of(method) != "quantize_block":
        return result
    if not torch.equal(arguments[0][0].weight, weight):
        raise Broke("the block was changed in place")
    return result.weights["0"]


def weight_error(quantized: WeightFormat, weight: Tensor) -> float:
    """Sum of the squared differences, in float64."""
    return (quantized.dequantize() - weight).double().square().sum().item()


def output_error(quantized: WeightFormat, weight: Tensor, stats: LinearStats) -> float:
    """tr(dW H dW^T), in float64."""
    difference = (quantized.dequantize() - weight).double()
    return ((difference @ stats.hessian.double()) * difference).sum().item()


def equal(a: WeightFormat, b: WeightFormat) -> bool:
    """Whether all stored parts of two weights are the same, bit for bit."""
    left = a.to_tensors()
    right = b.to_tensors()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def bits_of(method: Any) -> list[int]:
    """Up to four bit-widths of the supported range, ascending."""
    low, high = method.bits
    return [bits for bits in (2, 3, 4, 6) if low <= bits <= high] or [low]


def hyper_parameters(method: Any) -> dict[str, Any]:
    """The values of the method's fields by name."""
    return {field.name: getattr(method, field.name) for field in fields(method) if field.init}
