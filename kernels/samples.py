"""Random weights of every format, for checks and timings: the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.formats import Binary, Dense, Lattice, RotatedBinary, Uniform
from qbench.formats.lattice import Features
from qbench.formats.snapping import HALF, stored_coding, stored_scale, stored_zero_points
from qbench.formats.stepped import Numbers

ZeroPoints = Literal["integer", "real", "middle"]
OFFSET = 0.1  # the least size of a scale, so that none vanishes


def random_binary(
    shape: tuple[int, int],
    bits: int,
    group_size: int,
    seed: int = 0,
    shift: bool = True,
    dtype: torch.dtype = torch.float16,
    scale_bits: int = HALF,
) -> Binary:
    """A binary-coded weight (out, in) of random codes, as alternating coding stores it.

    shift: whether groups have one. dtype: of the scales and shifts. scale_bits: as methods have it;
    16 is `dtype`.
    """
    out, columns = shape
    generator = torch.Generator().manual_seed(seed)
    groups = columns // group_size
    planes = _integers(256, (bits, out, columns // 8), generator)
    alpha = torch.rand(out, groups, bits, generator=generator) + OFFSET
    alpha = alpha.div_(columns**0.5).to(dtype)
    shifts = torch.randn(out, groups, generator=generator).div_(columns**0.5).to(dtype)
    offset = shifts if shift else None
    if scale_bits == HALF:
        return Binary(planes, alpha, offset, columns, group_size)
    return Binary(planes, *stored_coding(alpha, offset, scale_bits), columns, group_size)


def random_rotated(
    shape: tuple[int, int],
    bits: int,
    group_size: int,
    seed: int = 0,
    shift: bool = True,
    dtype: torch.dtype = torch.float16,
    scale_bits: int = HALF,
) -> RotatedBinary:
    """`random_binary` between random signs and a Hadamard transform."""
    coding = random_binary(shape, bits, group_size, seed, shift, dtype, scale_bits)
    generator = torch.Generator().manual_seed(seed)
    return RotatedBinary.from_coding(coding, torch.randn(shape[1], generator=generator))


def random_uniform(
    shape: tuple[int, int],
    bits: int,
    group_size: int,
    seed: int = 0,
    zero_points: ZeroPoints = "integer",
    dtype: torch.dtype = torch.float16,
    scale_bits: int = HALF,
) -> Uniform:
    """A uniform weight (out, in) of random codes.

    zero_points: packed integers, real numbers, or none, which means the middle of the grid. dtype:
    of the scales and real zero points. scale_bits: as methods have it; 16 is `dtype`.
    """
    out, columns = shape
    generator = torch.Generator().manual_seed(seed)
    codes = _integers(2**bits, (out, columns), generator)
    scale = torch.rand(out, columns // group_size, generator=generator) + OFFSET
    scale = scale.div_(columns).to(dtype)
    integers = _integers(2**bits, tuple(scale.shape), generator)
    real = integers.to(dtype) + 0.25
    zero: dict[ZeroPoints, Numbers | None] = {"integer": integers, "real": real, "middle": None}
    if scale_bits == HALF:
        return Uniform.from_codes(codes, scale, zero[zero_points], bits)
    zero["real"] = stored_zero_points(real, scale, bits, scale_bits)
    return Uniform.from_codes(codes, stored_scale(scale, scale_bits), zero[zero_points], bits)


def random_lattice(
    shape: tuple[int, int],
    bits: int,
    group_size: int = 0,
    seed: int = 0,
    features: Features = "codes",
) -> Lattice:
    """A lattice weight (out, in) of vectors of 4 inputs. It has no groups: they are ignored."""
    out, columns = shape
    d = 4
    generator = torch.Generator().manual_seed(seed)
    codes = _integers(2**bits, (out, columns), generator)
    k = d if features == "codes" else d * bits
    mapping = torch.randn(d, k, generator=generator).div_(columns**0.5)
    offset = torch.randn(d, generator=generator).div_(columns**0.5)
    su = torch.randn(columns, generator=generator)
    sv = torch.randn(out, generator=generator)
    return Lattice.from_codes(codes, mapping, offset, su, sv, bits, features)


def random_dense(
    shape: tuple[int, int], bits: int = 0, group_size: int = 0, seed: int = 0
) -> Dense:
    """A weight (out, in) in float32. It has neither bits nor groups: they are ignored."""
    generator = torch.Generator().manual_seed(seed)
    return Dense(torch.randn(shape, generator=generator).div_(shape[1] ** 0.5))


# format -> a function of shape (out, in), bits, group_size and seed
MAKERS: dict[str, Callable[[tuple[int, int], int, int, int], WeightFormat]] = {
    "binary": random_binary,
    "rotated-binary": random_rotated,
    "uniform": random_uniform,
    "lattice": random_lattice,
    "dense": random_dense,
}
# the same with scales as integers, of the formats that can have them
STEPPED_MAKERS: dict[str, Callable[[tuple[int, int], int, int, int], WeightFormat]] = {
    "binary": partial(random_binary, scale_bits=6),
    "rotated-binary": partial(random_rotated, scale_bits=6),
    "uniform": partial(random_uniform, scale_bits=6, zero_points="real"),
}


def _integers(end: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(0, end, shape, generator=generator, dtype=torch.uint8)
