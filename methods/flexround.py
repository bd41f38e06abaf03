"""FlexRound: learn where each weight is rounded to by dividing it, element by element, first.

Lee, Kim, Kwon and Lee 2023, ICML, arXiv:2306.00317, equation 2: with the grid s1, the element-wise
factor S2 and the row factor s3, all positive and 1 at the start but for s1,

    w^ = s1 ( clip( round( w / (s1 S2 s3) + z ), 0, n ) - z ).

Start from GPTQ. Where the codes of the start come of error feedback, w is not the weight but what
the feedback had made of it when it was rounded: rounding to nearest then gives GPTQ's codes.

Only s1, z and the codes are stored. Parameters are logarithms: d1 = log s1, d2 = log S2, d3 = log
s3. As S2 is a divisor, the gradient in d2 is proportional to the weight: large weights move further
(the reciprocal rule of the paper). With groups, s1 and s3 have one entry per group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qbench.calibration.fused import over_rows
from qbench.calibration.reconstruction import Reconstruction, TrainedWeight, straight_through
from qbench.calibration.training import Groups
from qbench.contracts import LinearStats, Scheme
from qbench.formats import Uniform
from qbench.formats.packing import as_stored
from qbench.formats.snapping import check_scale_bits
from qbench.formats.stepped import Numbers, values
from qbench.methods.dynamic_groups import like
from qbench.methods.gptq import GPTQ
from qbench.methods.grids import TINY, zero_as_float
from qbench.methods.rtn import RTN


@dataclass(frozen=True)
class FlexRound(Reconstruction):
    """Learned rounding by element-wise division, on the output of a block.

    lr: learning rate of the logarithms of s1, S2 and s3. None is 0.12 / 2^bits, since a weight must
        move in proportion to the grid's step to change its code; after `curvature` it is
        0.016 / 2^bits, since a higher rate loses the codes of that start.
    start: `curvature` takes the grid of `gptq` and the values that `gptq` rounded, so that the
        codes at the start are those of `gptq`; `weights` takes the grid of `rtn` and the weights.
    clip, zero_point, scale_bits: of the grid at the start, as in `rtn`. With scale_bits below 16,
        s1 is trained on the steps of the start.
    """

    name: ClassVar[str] = "flexround"
    paper: ClassVar[str] = "Lee et al., FlexRound, ICML 2023, arXiv:2306.00317"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True

    lr: float | None = None
    start: Literal["curvature", "weights"] = "curvature"
    clip: Literal["search", "none"] = "search"
    zero_point: Literal["integer", "real"] = "integer"
    scale_bits: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale_bits(self.scale_bits)

    def prepare(
        self, weight: Tensor, scheme: Scheme, stats: LinearStats | None = None
    ) -> FlexRoundWeight:
        """weight (out, in), floating: -> its parameters at the start.

        Without `stats` the start is `weights`.
        """
        group = scheme.group_length(weight.shape[1])
        if self.start == "curvature" and stats is not None:
            feedback = GPTQ(clip=self.clip, zero_point=self.zero_point, scale_bits=self.scale_bits)
            rounded = feedback.rounded(weight, stats, scheme)
            scale = rounded.scale
            zero = rounded.zero
            W = rounded.values
            lr = 0.016 / 2**scheme.bits
        else:
            W = weight.float()
            grids = RTN(self.clip, self.zero_point, scale_bits=self.scale_bits)
            scale, zero = grids.snapped_grid(W.unflatten(1, (-1, group)), scheme)
            lr = 0.12 / 2**scheme.bits
        W = W.unflatten(1, (-1, group))  # (out, groups, g)
        return FlexRoundWeight(W, scale, zero, scheme.bits, lr if self.lr is None else self.lr)


class FlexRoundWeight(TrainedWeight):
    """One weight in training, rows = out * groups.

    Parameters, float32: d1, d3 (rows, 1) and d2 (rows, g).
    """

    def __init__(
        self, W: Tensor, scale: Numbers, zero: Numbers | None, bits: int, lr: float
    ) -> None:
        """W (out, groups, g) float32; scale and zero point (out, groups) as stored."""
        super().__init__()
        self.W = W
        self.scale = scale
        self.zero = zero
        self.bits = bits
        self.lr = lr
        self.X = W.flatten(0, 1)  # (rows, g)
        start = values(scale).float()
        self.z = zero_as_float(start, values(zero), bits).reshape(-1, 1)  # (rows, 1)
        # S2 = s3 = 1: the start is the grid itself.
        self.d1 = nn.Parameter(start.clamp_min(TINY).log().reshape(-1, 1))
        self.d2 = nn.Parameter(torch.zeros_like(self.X))
        self.d3 = nn.Parameter(torch.zeros_like(self.d1))

    def forward(self) -> Tensor:
        """(out, in) in the dtype of the products."""
        top = 2**self.bits - 1
        parameters = (self.X, self._snapped(), self.d2, self.d3, self.z)
        weight: Tensor = _Rounded.apply(*parameters, top, self.products)
        return weight.view(len(self.W), -1)

    def _snapped(self) -> Tensor:
        """d1 (rows, 1); of scales that are stored as integers, the nearest of these.

        The gradient passes through that rounding.
        """
        if isinstance(self.scale, Tensor):
            return self.d1
        with torch.no_grad():
            snapped = values(self._stored_scale()).float().clamp_min(TINY).log().view(-1, 1)
        return straight_through(self.d1, snapped)

    def _stored_scale(self) -> Numbers:
        """s1 (out, groups) as it is stored."""
        scale = self.d1.exp().view(self.W.shape[:2])
        return as_stored(scale) if isinstance(self.scale, Tensor) else like(self.scale, scale)

    @torch.no_grad()
    def export(self) -> Uniform:
        """The codes that the divisors choose, and s1 as it is stored."""
        parameters = (self.X, self._snapped(), self.d2, self.d3, self.z)
        (codes,) = over_rows(_codes, *parameters, n=2**self.bits - 1)
        codes = codes.view(len(self.W), -1)
        return Uniform.from_codes(codes, self._stored_scale(), self.zero, self.bits)

    def groups(self) -> Groups:
        """All three at one rate, as in the authors' code."""
        return [{"params": [self.d1, self.d2, self.d3], "lr": self.lr}]


class _Rounded(torch.autograd.Function):
    """Equation 2, with the straight-through estimate d round(v)/dv = 1, and 0 where it clips.

    With s = e^d1, v = w / e^(d1 + d2 + d3), m = 1 where not clipped, else 0, G = dL/dw^, and sums
    over the group,

        dL/dd2 = -m G s v        dL/dd3 = sum dL/dd2        dL/dd1 = sum G w^ + dL/dd3.

    For w^ = s (q - z), where dq = m dv and dv = -v (dd1 + dd2 + dd3), and ds = s dd1:
    dw^ = w^ dd1 - m s v (dd1 + dd2 + dd3). The zero point is constant.

    Nothing of the weight's size is kept for the backward pass: v is computed again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        X: Tensor,
        d1: Tensor,
        d2: Tensor,
        d3: Tensor,
        z: Tensor,
        n: int,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """w^ (rows, g) of X, d2 (rows, g) and d1, d3, z (rows, 1); n = 2^b - 1."""
        ctx.save_for_backward(X, d1, d2, d3, z)
        ctx.n = n
        (weight,) = over_rows(_rounded, X, d1, d2, d3, z, n=n, dtype=dtype)
        return weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of d1, d2 and d3; the others have none."""
        gradients = over_rows(_gradients, *ctx.saved_tensors, grads[0], n=ctx.n)
        return None, *gradients, None, None, None


def _codes(X: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, z: Tensor, n: int) -> tuple[Tensor]:
    """(rows, g) uint8: which point of the grid each weight is rounded to."""
    q = divided(X, d1, d2, d3).add_(z).round_().clamp_(0, n)
    return (q.to(torch.uint8),)


def _rounded(
    X: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, z: Tensor, n: int, dtype: torch.dtype | None
) -> tuple[Tensor]:
    """w^ (rows, g)."""
    q = divided(X, d1, d2, d3).add_(z).round_().clamp_(0, n)
    return (q.sub_(z).mul_(d1.exp()).to(dtype or X.dtype),)


def _gradients(
    X: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, z: Tensor, G: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of d1 (rows, 1), d2 (rows, g) and d3 (rows, 1), from G = dL/dw^ (rows, g)."""
    v = divided(X, d1, d2, d3)
    q = (v + z).round_()
    on_grid = q.clamp(0, n)
    inside = q.eq_(on_grid)  # m, as numbers: a product with booleans takes twice as long
    Gs = G * d1.exp()  # G s
    steps = on_grid.sub_(z)  # w^ / s
    grad_d1 = steps.mul_(Gs).sum(1, keepdim=True)  # sum G w^
    # In place: Gs is m G s afterwards.
    grad_d2 = v.mul_(Gs.mul_(inside)).neg_()
    grad_d3 = grad_d2.sum(1, keepdim=True)
    return grad_d1 + grad_d3, grad_d2, grad_d3


def divided(X: Tensor, d1: Tensor, d2: Tensor, d3: Tensor) -> Tensor:
    """v = w / e^(d1 + d2 + d3), a new tensor of (rows, g): w e^-(d1 + d2 + d3), in one temporary.

    X, d2 (rows, g); d1, d3 (rows, 1).
    """
    return torch.add(d2, d1 + d3).neg_().exp_().mul_(X)
