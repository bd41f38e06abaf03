"""A method for each format, and each way to store its scales, that a folder can hold."""

from __future__ import annotations

from dataclasses import dataclass

import qbench
from qbench.contracts import Method
from qbench.formats import Binary, Uniform
from qbench.formats.snapping import stored_coding, stored_scale, stored_zero_points
from qbench.methods.alternating import Alternating
from qbench.methods.rtn import RTN

METHOD_OF_FORMAT = {
    "uniform": "rtn",
    "binary": "alternating",
    "rotated-binary": "alternating",
    "lattice": "unisvq",
    "dense": "none",
    "uniform, scales as integers": "rtn",
    "binary, scales as integers": "alternating",
    "rotated-binary, scales as integers": "alternating",
}


@dataclass(frozen=True)
class SteppedRTN(RTN):
    """Round-to-nearest, its scales stored as 6-bit integers, and zero points that are real."""

    def quantize_weight(self, weight, scheme):
        made = super().quantize_weight(weight, scheme)
        scale = stored_scale(made.scale, 6)
        zero = made.zero_point
        if zero.is_floating_point():
            zero = stored_zero_points(zero, made.scale, made.bits, 6)
        return Uniform(made.codes, scale, zero, made.bits, made.in_features, made.group_size)


@dataclass(frozen=True)
class SteppedAlternating(Alternating):
    """Alternating coding, its scales stored as 6-bit integers."""

    def quantize_weight(self, weight, scheme):
        made = super().quantize_weight(weight, scheme)
        numbers = stored_coding(made.alpha, made.shift, 6)
        return Binary(made.planes, *numbers, made.in_features, made.group_size)


def method_of_format(name: str) -> Method:
    """A method that makes weights of the format, without training."""
    stepped = {
        "uniform, scales as integers": SteppedRTN(zero_point="real"),
        "binary, scales as integers": SteppedAlternating(),
        "rotated-binary": Alternating(rotate=True),
        "rotated-binary, scales as integers": Alternating(rotate=True, scale_bits=6),
    }
    if name in stepped:
        return stepped[name]
    settings = {"epochs": 0} if name == "lattice" else {}
    return qbench.get_method(METHOD_OF_FORMAT[name], **settings)
