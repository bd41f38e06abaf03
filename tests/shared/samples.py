"""Random tokens, numbers and quantized weights, the same for the same arguments."""

from __future__ import annotations

import torch

from qbench.formats import Binary, Lattice, Uniform

PROMPT = torch.arange(40).view(2, 20)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def token_ids(samples: int = 5, length: int = 16, vocabulary: int = 64) -> torch.Tensor:
    """(samples, length) int64: token numbers below `vocabulary`."""
    return torch.randint(0, vocabulary, (samples, length), generator=seeded(0))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers of the standard normal distribution."""
    return torch.randn(*shape, generator=seeded(seed), dtype=dtype)


def integers(shape: tuple[int, ...], low: int, high: int, seed: int = 0) -> torch.Tensor:
    """uint8 numbers from `low` to `high - 1`, as codes and zero points are."""
    return torch.randint(low, high, shape, generator=seeded(seed), dtype=torch.uint8)


def scales(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """float32 numbers from 0.01 to 1.01, none of them zero, as scales are."""
    return torch.rand(shape, generator=seeded(seed)) + 0.01


def uniform_weight(
    out: int,
    inputs: int,
    bits: int,
    group_size: int,
    zero: str = "integer",
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Uniform:
    """A weight (out, inputs); `zero`: "integer", "real" or "middle" zero points."""
    generator = seeded(seed)
    groups = inputs // group_size
    codes = torch.randint(0, 2**bits, (out, inputs), generator=generator)
    scale = (torch.rand(out, groups, generator=generator) + 0.1).to(dtype)
    points = torch.randint(0, 2**bits, (out, groups), generator=generator).to(torch.uint8)
    zero_points = {"integer": points, "real": points.to(dtype) + 0.25, "middle": None}
    return Uniform.from_codes(codes, scale, zero_points[zero], bits)


def binary_weight(
    out: int,
    inputs: int,
    bits: int,
    group_size: int,
    shift: bool = True,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Binary:
    """A weight (out, inputs) of `bits` planes, with shifts or without."""
    generator = seeded(seed)
    groups = inputs // group_size
    planes = torch.randint(0, 2, (bits, out, inputs), generator=generator)
    alpha = (torch.rand(out, groups, bits, generator=generator) + 0.1).to(dtype)
    shifts = torch.randn(out, groups, generator=generator).to(dtype) if shift else None
    return Binary.from_planes(planes, alpha, shifts)


def lattice_weight(
    out: int,
    inputs: int,
    bits: int,
    dimension: int = 4,
    features: str = "codes",
    offset: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Lattice:
    """A weight (out, inputs) whose vectors of `dimension` are a map of their "codes" or "signs"."""
    columns = dimension * bits if features == "signs" else dimension
    return Lattice.from_codes(
        integers((out, inputs), 0, 2**bits, seed=1),
        normal(dimension, columns, seed=2).to(dtype),
        normal(dimension, seed=3).to(dtype) if offset else None,
        normal(inputs, seed=4).to(dtype),
        normal(out, seed=5).to(dtype),
        bits,
        features,
    )
