"""FlexRound: learn where each weight is rounded to by dividing it, element by element, before rounding.

Lee, Kim, Kwon and Lee 2023, ICML, arXiv:2306.00317, equation 2: with the grid s1, the element-wise
factor S2 and the row factor s3, all positive and 1 at the start but for s1,

    w^ = s1 ( clip( round( w / (s1 S2 s3) + z ), 0, n ) - z ).

Only s1, z and the codes are stored. Parameters are logarithms: d1 = log s1, d2 = log S2, d3 = log
s3. As S2 is a divisor, the gradient in d2 is proportional to the weight: large weights move further
(the reciprocal rule of the paper). With groups, s1 and s3 have one entry per group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qbench.calibration.reconstruction import Groups, Reconstruction, TrainedWeight
from qbench.contracts import Scheme
from qbench.formats import Uniform
from qbench.formats.packing import as_stored
from qbench.methods.rtn import RTN, TINY


@dataclass(frozen=True)
class FlexRound(Reconstruction):
    """Learned rounding by element-wise division, on the output of a block.

    lr: of the logarithms of s1, S2 and s3; None is 0.12 / 2^bits, for a weight must move in
    proportion to the grid's step to change its code. clip, zero_point: of the grid at the start, as
    in `rtn`.
    """

    name: ClassVar[str] = "flexround"
    paper: ClassVar[str] = "Lee et al., FlexRound, ICML 2023, arXiv:2306.00317"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True

    lr: float | None = None
    clip: Literal["search", "none"] = "search"
    zero_point: Literal["integer", "real"] = "integer"

    def prepare(self, weight: Tensor, scheme: Scheme) -> FlexRoundWeight:
        """(out, in) -> its parameters on the grid that `rtn` finds."""
        W = weight.float().unflatten(
            1, (-1, scheme.group_length(weight.shape[1]))
        )  # (out, groups, g)
        scale, zero = RTN(clip=self.clip, zero_point=self.zero_point).grid(W, scheme)
        lr = 0.12 / 2**scheme.bits if self.lr is None else self.lr
        return FlexRoundWeight(W, scale, zero, scheme.bits, lr)


class FlexRoundWeight(TrainedWeight):
    """One weight in training. d1, d3: (out * groups, 1); d2: (out * groups, g), all float32."""

    def __init__(self, W: Tensor, scale: Tensor, zero: Tensor | None, bits: int, lr: float) -> None:
        """W (out, groups, g) float32; scale and zero point (out, groups) as stored."""
        super().__init__()
        self.W, self.zero, self.bits, self.lr = W, zero, bits, lr
        rows = W.flatten(0, 1)
        z = (
            torch.full_like(scale, 2.0 ** (bits - 1), dtype=torch.float32)
            if zero is None
            else zero.float()
        )
        self.X, self.z = rows, z.reshape(-1, 1)
        self.d1 = nn.Parameter(scale.float().clamp_min(TINY).log().reshape(-1, 1))
        self.d2 = nn.Parameter(torch.zeros_like(rows))
        self.d3 = nn.Parameter(torch.zeros_like(self.d1))

    def forward(self) -> Tensor:
        """(out, in) float32."""
        found: Tensor = _Rounded.apply(self.X, self.d1, self.d2, self.d3, self.z, 2**self.bits - 1)
        return found.view(len(self.W), -1)

    @torch.no_grad()
    def export(self) -> Uniform:
        """The codes that the divisors choose, and s1 as it is stored."""
        codes = torch.empty_like(self.X, dtype=torch.uint8)
        for part in chunks(self.X):
            v = divided(self.X[part], self.d1[part], self.d2[part], self.d3[part])
            codes[part] = v.add_(self.z[part]).round_().clamp_(0, 2**self.bits - 1)
        scale = as_stored(self.d1.exp().view(self.W.shape[:2]))
        return Uniform.from_codes(codes.view(len(self.W), -1), scale, self.zero, self.bits)

    def groups(self) -> Groups:
        """All three at one rate, as in the authors' code."""
        return [{"params": [self.d1, self.d2, self.d3], "lr": self.lr}]


class _Rounded(torch.autograd.Function):
    """The equation, with the straight-through estimate d round(v)/dv = 1 inside the grid and 0 where it clips.

    With v = w / exp(d1 + d2 + d3), m = 1 where not clipped, G = dL/dw^:
    dL/dd2 = -m G s v;  dL/dd3 = the sum of it over the group;  dL/dd1 = sum G w^ + dL/dd3.
    Nothing of the weight's size is kept for the backward pass: v is computed again.
    """

    @staticmethod
    def forward(
        ctx: Any, X: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, z: Tensor, n: int
    ) -> Tensor:
        ctx.save_for_backward(X, d1, d2, d3, z)
        ctx.n = n
        found = torch.empty_like(X)
        for part in chunks(X):
            v = divided(X[part], d1[part], d2[part], d3[part])
            torch.mul(
                v.add_(z[part]).round_().clamp_(0, n).sub_(z[part]), d1[part].exp(), out=found[part]
            )
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        X, d1, d2, d3, z = ctx.saved_tensors
        G = grads[0]
        g1, g2, g3 = torch.empty_like(d1), torch.empty_like(d2), torch.empty_like(d3)
        for part in chunks(X):
            v = divided(X[part], d1[part], d2[part], d3[part])
            q = (v + z[part]).round_()
            inside = (q >= 0) & (q <= ctx.n)
            scaled = G[part] * d1[part].exp()  # G s
            g1[part] = (q.clamp_(0, ctx.n).sub_(z[part]) * scaled).sum(1, keepdim=True)
            g2[part] = torch.mul(scaled.mul_(inside), v).neg_()
            g3[part] = g2[part].sum(1, keepdim=True)
        return None, g1 + g3, g2, g3, None, None


def divided(X: Tensor, d1: Tensor, d2: Tensor, d3: Tensor) -> Tensor:
    """v = w / exp(d1 + d2 + d3), a new tensor of (rows, g)."""
    return torch.add(d2, d1 + d3).neg_().exp_().mul_(X)


def chunks(X: Tensor) -> Iterator[slice]:
    """Rows of (rows, g) in parts of 2^18 weights on a CPU, where temporaries then stay in the cache; else 2^24."""
    step = max(1, (1 << 18 if X.device.type == "cpu" else 1 << 24) // X.shape[1])
    return (slice(start, start + step) for start in range(0, len(X), step))
