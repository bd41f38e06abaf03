"""GPTQ with one fault each, as somebody may make it by mistake: what a gate must find.

A plug-in for `qbench run --plugin benchmarks/faulty_methods.py`; `benchmarks/planted_faults.py`
holds each against GPTQ. The faults run from a search that was left out to one group in a hundred.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from qbench.contracts import LinearStats, Scheme
from qbench.formats import Uniform
from qbench.methods.error_feedback import inverse_cholesky, live_hessian, round_columns
from qbench.methods.gptq import GPTQ
from qbench.methods.rtn import RTN


def parts(weight: Uniform) -> tuple[Tensor, Tensor, Tensor]:
    """codes (out, in), scale and zero point (out, groups), the integers uint8."""
    codes, _, zero = weight.unpacked()
    return codes.flatten(1).to(torch.uint8), weight.scale, zero.to(torch.uint8)


def rebuilt(codes: Tensor, scale: Tensor, zero: Tensor, scheme: Scheme) -> Uniform:
    """The weight of these parts, symmetric where that was asked for."""
    return Uniform.from_codes(codes, scale, None if scheme.symmetric else zero, scheme.bits)


def of_inputs(groups: Tensor, scheme: Scheme, inputs: int) -> Tensor:
    """(out, groups) -> (out, in) float32: the number of its group for every weight."""
    return groups.float().repeat_interleave(scheme.group_length(inputs), 1)


@dataclass(frozen=True)
class Identical(GPTQ):
    """No fault."""

    name: ClassVar[str] = "identical"


@dataclass(frozen=True)
class NoClipSearch(GPTQ):
    """The grid spans the extremes."""

    name: ClassVar[str] = "no-clip-search"
    clip: str = "none"  # type: ignore[assignment]


@dataclass(frozen=True)
class Damping10(GPTQ):
    """Ten times the mean of the diagonal: the Hessian is nearly a multiple of the identity."""

    name: ClassVar[str] = "damping-10"
    damp: float = 10.0


@dataclass(frozen=True)
class NoActOrder(GPTQ):
    """The columns in their own order."""

    name: ClassVar[str] = "no-act-order"
    act_order: bool = False


@dataclass(frozen=True)
class NoFeedback(GPTQ):
    """Rounding to nearest, on the same grid."""

    name: ClassVar[str] = "no-feedback"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        return RTN(clip=self.clip, norm=self.norm).quantize_weight(weight, scheme)


@dataclass(frozen=True)
class DiagonalHessian(GPTQ):
    """The cross terms are lost, so that no error is spread."""

    name: ClassVar[str] = "diagonal-hessian"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        H = torch.diag(stats.hessian.diagonal())
        return super().quantize_linear(weight, replace(stats, hessian=H), scheme)


@dataclass(frozen=True)
class ShiftedHessian(GPTQ):
    """Columns and Hessian are permuted by orders that stand one place apart."""

    name: ClassVar[str] = "order-off-by-one"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        H = stats.hessian.roll((1, 1), (0, 1))
        return super().quantize_linear(weight, replace(stats, hessian=H), scheme)


@dataclass(frozen=True)
class OtherHessian(GPTQ):
    """The Hessian of the layer of this size that came before."""

    name: ClassVar[str] = "hessian-of-another-layer"
    earlier: ClassVar[dict[int, Tensor]] = {}

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        H = self.earlier.get(len(stats.hessian), stats.hessian)
        self.earlier[len(H)] = stats.hessian.clone()
        return super().quantize_linear(weight, replace(stats, hessian=H), scheme)


@dataclass(frozen=True)
class NoInputs(GPTQ):
    """Calibrated on zeros."""

    name: ClassVar[str] = "calibration-of-zeros"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        H = torch.zeros_like(stats.hessian)
        return super().quantize_linear(weight, replace(stats, hessian=H), scheme)


@dataclass(frozen=True)
class WrongSign(GPTQ):
    """The errors are fed back with the wrong sign."""

    name: ClassVar[str] = "feedback-wrong-sign"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        U = inverse_cholesky(live_hessian(stats), self.damp)
        U = 2 * U.diagonal().diag() - U
        _, scale, zero = parts(RTN().quantize_weight(weight, scheme))
        s, z = (of_inputs(groups, scheme, weight.shape[1]) for groups in (scale, zero))
        top = 2**scheme.bits - 1
        codes = round_columns(weight.float(), U, s, z, top, self.block_size).codes
        return rebuilt(codes, scale, zero, scheme)


@dataclass(frozen=True)
class BiasedRounding(GPTQ):
    """Every weight ends a twentieth of a step too high."""

    name: ClassVar[str] = "rounding-bias"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        _, scale, _ = parts(RTN().quantize_weight(weight, scheme))
        step = of_inputs(scale, scheme, weight.shape[1])
        return super().quantize_linear(weight + 0.05 * step, stats, scheme)


@dataclass(frozen=True)
class HalfHessian(GPTQ):
    """Added up in bfloat16, as where a cast was forgotten."""

    name: ClassVar[str] = "bfloat16-hessian"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        H = stats.hessian.bfloat16().float()
        return super().quantize_linear(weight, replace(stats, hessian=H), scheme)


@dataclass(frozen=True)
class WrongZeroPoints(GPTQ):
    """In one group of a hundred the zero point is one too high."""

    name: ClassVar[str] = "wrong-zero-points"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        codes, scale, zero = parts(super().quantize_linear(weight, stats, scheme))
        wrong = zero.view(-1)[::100]  # a view
        wrong.add_(1).clamp_(max=2**scheme.bits - 1)
        return rebuilt(codes, scale, zero, scheme)


@dataclass(frozen=True)
class WrongScales(GPTQ):
    """All scales are 3 % too large after the codes were chosen."""

    name: ClassVar[str] = "scales-3-percent"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        codes, scale, zero = parts(super().quantize_linear(weight, stats, scheme))
        return rebuilt(codes, scale * 1.03, zero, scheme)


@dataclass(frozen=True)
class CoarseScales(GPTQ):
    """Scales with 3 bits of mantissa, rounded after the codes were chosen."""

    name: ClassVar[str] = "coarse-scales"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        codes, scale, zero = parts(super().quantize_linear(weight, stats, scheme))
        mantissa, exponent = torch.frexp(scale.float())
        coarse = torch.ldexp((mantissa * 16).round() / 16, exponent).to(scale.dtype)
        return rebuilt(codes, coarse, zero, scheme)


@dataclass(frozen=True)
class LostLevel(GPTQ):
    """The highest code is never used: an off-by-one in a clamp."""

    name: ClassVar[str] = "lost-level"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        codes, scale, zero = parts(super().quantize_linear(weight, stats, scheme))
        codes = codes.clamp(max=2**scheme.bits - 2)
        return rebuilt(codes, scale, zero, scheme)


@dataclass(frozen=True)
class FlippedCodes(GPTQ):
    """One code of a thousand has its lowest bit flipped: a broken packing."""

    name: ClassVar[str] = "flipped-codes"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        codes, scale, zero = parts(super().quantize_linear(weight, stats, scheme))
        codes.view(-1)[::1000] ^= 1
        return rebuilt(codes, scale, zero, scheme)


@dataclass(frozen=True)
class NarrowLayersNearest(GPTQ):
    """Layers with few outputs, keys and values here, are rounded to nearest."""

    name: ClassVar[str] = "keys-and-values-nearest"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        if len(weight) < weight.shape[1] // 2 and weight.shape[1] < 1024:
            return RTN(clip=self.clip, norm=self.norm).quantize_weight(weight, scheme)
        return super().quantize_linear(weight, stats, scheme)


@dataclass(frozen=True)
class WideLayersNearest(GPTQ):
    """Layers with more inputs than outputs, the last of a block, are rounded to nearest."""

    name: ClassVar[str] = "down-projections-nearest"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        if len(weight) < weight.shape[1] and weight.shape[1] >= 1024:
            return RTN(clip=self.clip, norm=self.norm).quantize_weight(weight, scheme)
        return super().quantize_linear(weight, stats, scheme)


@dataclass(frozen=True)
class SwappedRows(GPTQ):
    """Two rows of every matrix have changed places."""

    name: ClassVar[str] = "swapped-rows"

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> Uniform:
        codes, scale, zero = parts(super().quantize_linear(weight, stats, scheme))
        codes[[0, 1]] = codes[[1, 0]]
        return rebuilt(codes, scale, zero, scheme)
