"""OmniQuant for weights: learned clips of groups (LWC), and learned scales between layers (LET).

Shao, Chen, Zhang, Xu, Zhao, Li, Zhang, Gao, Qiao and Luo 2024, ICLR, arXiv:2308.13137; details from
the authors' code. Learnable weight clipping, equation 2, per group, with sigma the logistic
function, n = 2^b - 1:

    h = sigma(gamma) max(W),  l = sigma(beta) min(W),  s = (h - l) / n,  z = round(-l / s),
    w^ = s ( clip( round( w / s ) + z, 0, n ) - z ).

Where all weights of a group have one sign, the range need not hold zero, and z lies outside of
0..n; a layer with such a group stores its zero points as float16.

At few bits the authors add the error to what the full-precision block makes of the quantized
prefix's output (`aug_loss`). Squared errors to two targets are, but for a constant, twice that to
their mean, which is what is trained on here. The learning rates are constant, as theirs.

Learnable equivalent transformation, equation 3, without its shift: W diag(s_c) is rounded instead
of W, and 1/s_c goes into what comes before, at the places of `qbench.calibration.folding`. The
authors use it for OPT and not for Llama's weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qbench.calibration.folding import Fold, has_bias
from qbench.calibration.folding_search import find_folds
from qbench.calibration.fused import over_rows
from qbench.calibration.reconstruction import Reconstruction, TrainedWeight, straight_through
from qbench.calibration.training import Groups, reconstruct
from qbench.contracts import BlockInputs, BlockResult, LinearStats, Scheme
from qbench.formats import Uniform
from qbench.formats.packing import as_stored
from qbench.formats.snapping import check_scale_bits, stored_scale
from qbench.formats.stepped import Stepped, values
from qbench.methods.dynamic_groups import like
from qbench.methods.grids import (
    TINY,
    round_to_grid,
    stored_zero,
    weight_range,
    zero_as_float,
)
from qbench.methods.learned_scales import Transformed
from qbench.methods.migration import largest_inputs, migration
from qbench.methods.rtn import RTN

START = 4.0  # of gamma and beta: sigma(4) = 0.982, nearly the whole range
LARGEST = 6.0  # at the start: sigma(6) = 0.998; beyond it the gradient is lost
FARTHEST = 2048  # of zero points: up to it, float16 holds every integer


@dataclass(frozen=True)
class OmniQuant(Reconstruction):
    """Learned clipping, and learned scales where the norms have a bias.

    lr_lwc: learning rate of gamma and beta. The authors' 0.01 is for 2560 steps, and hardly moves
        them in the tens of steps of a quick run.
    lr_let: learning rate of the logarithms of the scales.
    clip: `none` starts from the whole range, as the authors do; `search` from the range that `rtn`
        finds.
    let: whether scales are learned. `auto`: where the norm before a fold has a bias (LayerNorm
        models such as OPT), as in the authors' scripts.
    aug_loss: whether the loss has the error to the full-precision block's output for the quantized
        stream, too. `auto`: at 2 and 3 bits.
    scale_bits: as in `rtn`; below 16, the scales are trained on the steps of the start.
    """

    name: ClassVar[str] = "omniquant"
    paper: ClassVar[str] = "Shao et al., OmniQuant, ICLR 2024, arXiv:2308.13137"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True
    schedule: ClassVar[Literal["constant"]] = "constant"

    lr_lwc: float = 0.1
    lr_let: float = 5e-3
    clip: Literal["search", "none"] = "search"
    let: Literal["auto", "on", "off"] = "auto"
    aug_loss: Literal["auto", "on", "off"] = "auto"
    scale_bits: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scale_bits(self.scale_bits)

    def prepare(
        self, weight: Tensor, scheme: Scheme, stats: LinearStats | None = None
    ) -> LearnedClip:
        """weight (out, in), floating: -> its learned clipping at the start; no use of `stats`."""
        group = scheme.group_length(weight.shape[1])
        W = weight.float().unflatten(1, (-1, group))  # (out, groups, g)
        start = torch.full(W.shape[:2], START, device=W.device)
        starts = (start, start)
        if self.clip == "search":
            starts = self._searched(W, scheme)
        return LearnedClip(W, starts, scheme, self)

    def _searched(self, W: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """gamma and beta (out, groups) that give W (out, groups, g) the ranges that `rtn` finds.

        sigma(gamma) is the part of max W that the grid's upper end is, and sigma(beta) likewise. A
        part of 1 or more is nearly 1; an end of the other sign, which none is a part of, is START.
        """
        n = 2**scheme.bits - 1
        low, high = weight_range(W, scheme.symmetric, integer=False)
        stored, zero = RTN().grid(W, scheme)
        s = stored.float()
        z = zero_as_float(stored, zero, scheme.bits)
        top = s * (n // 2) if scheme.symmetric else s * (n - z)
        return _part(top, high), _part(-s * z, low)

    def quantize_block(
        self, block: nn.Module, inputs: BlockInputs, targets: list[Tensor], scheme: Scheme
    ) -> BlockResult:
        """Train gamma and beta, and with LET the scales of the folds, on the block's output.

        targets: what the block gives in full precision, (batch, length, width) per batch. LET
        starts from max|x|^0.5 / max|w|^0.5, or from 1 where that has the smaller loss.
        """
        if self.aug_loss == "on" or (self.aug_loss == "auto" and scheme.bits <= 3):
            targets = augmented(block, inputs, targets)
        folds = self._folds(block, inputs, scheme)
        if not folds:
            return super().quantize_block(block, inputs, targets, scheme)
        largest = largest_inputs(block, inputs, folds)
        migrated = []
        for fold, x in zip(folds, largest, strict=True):
            migrated.append(migration(block, fold, x))
        ones = [torch.ones_like(x) for x in largest]
        # Without epochs, a reconstruction gives the loss of the start alone.
        untrained = replace(self, epochs=0)
        states = []
        losses = []
        for scales in (migrated, ones):
            state = Transformed(block, self, scheme, folds, scales, inputs.dtype)
            states.append(state)
            losses.append(reconstruct(block, state, inputs, targets, untrained).log["initial"])
        best = states[losses.index(min(losses))]
        return reconstruct(block, best, inputs, targets, self)

    def _folds(self, block: nn.Module, inputs: BlockInputs, scheme: Scheme) -> list[Fold]:
        if self.let == "off":
            return []
        folds = [fold for fold in find_folds(block, inputs) if fold.may_change(scheme)]
        if self.let == "auto" and not any(has_bias(block, fold) for fold in folds):
            return []
        return folds


def _part(end: Tensor, whole: Tensor) -> Tensor:
    """The inverse of sigma of end / whole, both the same end of ranges (out, groups)."""
    ratio = end / torch.where(whole != 0, whole, torch.inf)
    # eps keeps it finite for a ratio of 0 or 1; above 1 it is cut to 1.
    start = torch.logit(ratio.clamp(0, 1), eps=1e-3).clamp_max(LARGEST)
    return torch.where(ratio > 0, start, START)


@torch.no_grad()
def augmented(block: nn.Module, inputs: BlockInputs, targets: list[Tensor]) -> list[Tensor]:
    """The means of `targets` and of what the block gives for the quantized stream."""
    means = []
    for batch, target in enumerate(targets):
        means.append((target + inputs.run(block, inputs.quantized[batch], batch)) / 2)
    return means


class LearnedClip(TrainedWeight):
    """One weight in training.

    Parameters: gamma, beta (out, groups) float32; a symmetric grid has gamma only.
    """

    def __init__(
        self, W: Tensor, starts: tuple[Tensor, Tensor], scheme: Scheme, method: OmniQuant
    ) -> None:
        """W (out, groups, g) float32; starts (out, groups) of gamma and beta."""
        super().__init__()
        self.W = W
        self.scheme = scheme
        self.lr = method.lr_lwc
        gamma, beta = starts
        self.gamma = nn.Parameter(gamma.clone())
        self.beta = None if scheme.symmetric else nn.Parameter(beta.clone())
        self.steps: Stepped | None = None  # what scales are integers of, where they are
        with torch.no_grad():
            s, _ = self.grid(W)
        scale = stored_scale(s, method.scale_bits)
        if isinstance(scale, Stepped):
            self.steps = scale

    def forward(self, W: Tensor | None = None) -> Tensor:
        """(out, in) in the dtype of the products.

        W: (out, in), a transformed weight in place of the layer's own; gradients flow into it.
        """
        W = self.W if W is None else W.view_as(self.W)
        s, z = self.grid(W)  # (out, groups)
        rows = W.flatten(0, 1)  # (out * groups, g)
        top = 2**self.scheme.bits - 1
        weight: Tensor = _Rounded.apply(rows, s.view(-1, 1), z.view(-1, 1), top, self.products)
        return weight.view(len(self.W), -1)

    def grid(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point (out, groups) of W (out, groups, g): equation 2.

        The rounding of the zero point passes no gradient.
        """
        n = 2**self.scheme.bits - 1
        low, high = weight_range(W, self.scheme.symmetric, integer=False)
        h = self.gamma.sigmoid() * high
        if self.beta is None:
            # n // 2 = 2^(b-1) - 1 steps on each side of the midpoint code (n + 1) / 2 = 2^(b-1).
            s = self._snapped((h / (n // 2)).clamp_min(TINY))
            return s, torch.full_like(h, (n + 1) / 2)
        low = self.beta.sigmoid() * low
        # Far from zero, and narrow: at this scale the zero point is the farthest one.
        least = (low.detach().abs() / FARTHEST).clamp_min(TINY)
        s = self._snapped(torch.maximum((h - low) / n, least))
        return s, (-low / s).detach().round().clamp(-FARTHEST, FARTHEST)

    def _snapped(self, s: Tensor) -> Tensor:
        """The nearest scales (out, groups) that are stored; the gradient passes through."""
        if self.steps is None:
            return s
        with torch.no_grad():
            snapped = values(like(self.steps, s)).float().clamp_min(TINY)
        return straight_through(s, snapped)

    @torch.no_grad()
    def export(self, W: Tensor | None = None) -> Uniform:
        """Rounded to the grid as it is stored. W: as in `forward`."""
        W = self.W if W is None else W.view_as(self.W)
        s, z = self.grid(W)
        scale = as_stored(s) if self.steps is None else like(self.steps, s)
        zero = None
        if self.beta is not None:
            within = bool(((z >= 0) & (z < 2**self.scheme.bits)).all())
            zero = stored_zero(z, integer=within)
        codes = round_to_grid(W, values(scale), zero, self.scheme.bits)
        return Uniform.from_codes(codes.flatten(1), scale, zero, self.scheme.bits)

    def groups(self) -> Groups:
        """gamma and beta at the rate `lr_lwc`."""
        return [{"params": list(self.parameters()), "lr": self.lr}]


class _Rounded(torch.autograd.Function):
    """w^ = s (clip(round(w / s) + z, 0, n) - z), with the estimate d round(v)/dv = 1.

    With m = 1 where not clipped, else 0, G = dL/dw^, and a sum over the group,

        dL/dw = m G        dL/ds = sum G (w^ - m w) / s.

    For w^ = s (q - z), where dq/dw = m / s and dq/ds = -m w / s^2 with z held fixed:
    dw^/dw = s m / s = m, and dw^/ds = (q - z) - m w / s = (w^ - m w) / s.

    Nothing of the weight's size is kept beside the weight.
    """

    @staticmethod
    def forward(
        ctx: Any, W: Tensor, s: Tensor, z: Tensor, n: int, dtype: torch.dtype | None
    ) -> Tensor:
        """w^ (rows, g) of W (rows, g), s and z (rows, 1); n = 2^b - 1."""
        ctx.save_for_backward(W, s, z)
        ctx.n = n
        (weight,) = over_rows(_rounded, W, s, z, n=n, dtype=dtype)
        return weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of W, where it needs one, and of s; the others have none."""
        saved = (*ctx.saved_tensors, grads[0])
        if ctx.needs_input_grad[0]:
            return *over_rows(_gradients, *saved, n=ctx.n)[::-1], None, None, None
        return None, *over_rows(_scale_gradient, *saved, n=ctx.n), None, None, None


def _rounded(W: Tensor, s: Tensor, z: Tensor, n: int, dtype: torch.dtype | None) -> tuple[Tensor]:
    """w^ (rows, g)."""
    q = (W / s).round_().add_(z).clamp_(0, n)
    return (q.sub_(z).mul_(s).to(dtype or W.dtype),)


def _gradients(W: Tensor, s: Tensor, z: Tensor, G: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Those of s (rows, 1) and of W (rows, g), from G = dL/dw^ (rows, g)."""
    v = W / s
    q = v.round().add_(z)
    inside = (q >= 0) & (q <= n)  # m
    steps = q.clamp_(0, n).sub_(z)  # w^ / s
    steps.sub_(v.mul_(inside))  # (w^ - m w) / s
    return steps.mul_(G).sum(1, keepdim=True), G * inside


def _scale_gradient(W: Tensor, s: Tensor, z: Tensor, G: Tensor, n: int) -> tuple[Tensor]:
    """That of s alone, where the weight itself is not trained."""
    return _gradients(W, s, z, G, n)[:1]
