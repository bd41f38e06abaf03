"""OmniQuant for weights: learn where each group is clipped (LWC), and scales between layers (LET), block by block.

Shao, Chen, Zhang, Xu, Zhao, Li, Zhang, Gao, Qiao and Luo 2024, ICLR, arXiv:2308.13137; details from
the authors' code. Learnable weight clipping, equation 2, per group, with sigma the logistic
function, n = 2^b - 1:

    h = sigma(gamma) max(W),  l = sigma(beta) min(W),  s = (h - l) / n,  z = round(-l / s),
    w^ = s ( clip( round( w / s ) + z, 0, n ) - z ).

Learnable equivalent transformation, equation 3, without its shift: W diag(s_c) is rounded instead
of W, and 1/s_c goes into what comes before, at the places of `qbench.calibration.folding`. The
authors use it for OPT and not for Llama's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qbench.calibration.folding import Fold, find_folds, has_bias, moved
from qbench.calibration.reconstruction import Groups, Reconstruction, TrainedWeight, reconstruct
from qbench.contracts import BlockInputs, BlockResult, Scheme
from qbench.formats import Uniform
from qbench.formats.packing import as_stored
from qbench.methods.flexround import chunks
from qbench.methods.rtn import RTN, TINY, round_to_grid, weight_range
from qbench.models.blocks import as_kept, linears, read_weight

START = 4.0  # of gamma and beta: sigma(4) = 0.982, nearly the whole range
LARGEST = 6.0  # at the start: sigma(6) = 0.998; beyond it the gradient is lost
SMALLEST = 1e-2  # below which a scale of LET is cut off, as in the authors' code


@dataclass(frozen=True)
class OmniQuant(Reconstruction):
    """Learned clipping, and learned scales where the norms have a bias.

    clip: `none` starts from the whole range, as the authors do, `search` from the one that `rtn`
    finds. let: `auto` is on where the norm before a fold has a bias (LayerNorm models such as OPT),
    as in the authors' scripts. lr_lwc: of gamma and beta; the authors' 0.01 is for 2560 steps, and
    hardly moves them in the tens of steps of a quick run. lr_let: of the logarithms of the scales.
    """

    name: ClassVar[str] = "omniquant"
    paper: ClassVar[str] = "Shao et al., OmniQuant, ICLR 2024, arXiv:2308.13137"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True

    lr_lwc: float = 0.1
    lr_let: float = 5e-3
    clip: Literal["search", "none"] = "search"
    let: Literal["auto", "on", "off"] = "auto"

    def prepare(self, weight: Tensor, scheme: Scheme) -> LearnedClip:
        """(out, in) -> its learned clipping at the start."""
        W = weight.float().unflatten(
            1, (-1, scheme.group_length(weight.shape[1]))
        )  # (out, groups, g)
        start = torch.full(W.shape[:2], START, device=W.device)
        if self.clip == "search":
            low, high = weight_range(W, scheme.symmetric, integer=True)
            span = (
                2 * high / (2**scheme.bits - 2)
                if scheme.symmetric
                else (high - low) / (2**scheme.bits - 1)
            )
            start = torch.logit(
                RTN().grid(W, scheme)[0].float() / span.clamp_min(TINY), eps=1e-3
            ).clamp_max(LARGEST)
        return LearnedClip(W, start, scheme, self.lr_lwc)

    def quantize_block(
        self, block: nn.Module, inputs: BlockInputs, targets: list[Tensor], scheme: Scheme
    ) -> BlockResult:
        """Train gamma and beta, and with LET the scales of the folds, on the block's output.

        LET starts from max|x|^0.5 / max|w|^0.5, or from 1 where that has the smaller loss.
        """
        folds = self._folds(block, inputs)
        if not folds:
            return super().quantize_block(block, inputs, targets, scheme)
        largest = largest_inputs(block, inputs, folds)
        migrated = [migration(block, fold, x) for fold, x in zip(folds, largest, strict=True)]
        states = [
            Transformed(block, self, scheme, folds, s)
            for s in (migrated, [torch.ones_like(x) for x in largest])
        ]
        losses = [
            reconstruct(block, state, inputs, targets, replace(self, epochs=0)).log["initial"]
            for state in states
        ]
        return reconstruct(block, states[losses.index(min(losses))], inputs, targets, self)

    def _folds(self, block: nn.Module, inputs: BlockInputs) -> list[Fold]:
        if self.let == "off":
            return []
        folds = find_folds(block, inputs)
        return folds if self.let == "on" or any(has_bias(block, fold) for fold in folds) else []


class LearnedClip(TrainedWeight):
    """One weight in training. gamma, beta: (out, groups) float32; a symmetric grid has gamma only."""

    def __init__(self, W: Tensor, start: Tensor, scheme: Scheme, lr: float) -> None:
        """W (out, groups, g) float32; start (out, groups) of gamma and beta."""
        super().__init__()
        self.W, self.scheme, self.lr = W, scheme, lr
        self.gamma = nn.Parameter(start.clone())
        self.beta = None if scheme.symmetric else nn.Parameter(start.clone())

    def forward(self, W: Tensor | None = None) -> Tensor:
        """(out, in) float32. W: (out, in), a transformed weight in place of the own; gradients flow into it."""
        W = self.W if W is None else W.view_as(self.W)
        s, z = self.grid(W)
        found: Tensor = _Rounded.apply(
            W.flatten(0, 1), s.view(-1, 1), z.view(-1, 1), 2**self.scheme.bits - 1
        )
        return found.view(len(self.W), -1)

    def grid(self, W: Tensor) -> tuple[Tensor, Tensor]:
        """(out, groups, g) -> scale and zero point (out, groups); the zero point's rounding passes no gradient."""
        low, high = weight_range(W, self.scheme.symmetric, integer=True)
        h, n = self.gamma.sigmoid() * high, 2**self.scheme.bits - 1
        if self.beta is None:
            return (h / (n // 2)).clamp_min(TINY), torch.full_like(h, (n + 1) / 2)
        low = self.beta.sigmoid() * low
        s = ((h - low) / n).clamp_min(TINY)
        return s, (-low / s).detach().round().clamp(0, n)

    @torch.no_grad()
    def export(self, W: Tensor | None = None) -> Uniform:
        """Rounded against the grid as it is stored."""
        W = self.W if W is None else W.view_as(self.W)
        s, z = self.grid(W)
        scale, zero = as_stored(s), None if self.beta is None else z.to(torch.uint8)
        codes = round_to_grid(W, scale, zero, self.scheme.bits)
        return Uniform.from_codes(codes.flatten(1), scale, zero, self.scheme.bits)

    def groups(self) -> Groups:
        """One rate."""
        return [{"params": list(self.parameters()), "lr": self.lr}]


class _Rounded(torch.autograd.Function):
    """w^ = s (clip(round(w / s) + z, 0, n) - z), with the straight-through estimate d round(v)/dv = 1.

    With m = 1 where not clipped, G = dL/dw^: dL/dw = m G;  dL/ds = the sum over the group of G (w^ - m w) / s.
    Nothing of the weight's size is kept beside the weight.
    """

    @staticmethod
    def forward(ctx: Any, W: Tensor, s: Tensor, z: Tensor, n: int) -> Tensor:
        ctx.save_for_backward(W, s, z)
        ctx.n = n
        found = torch.empty_like(W)
        for part in chunks(W):
            q = (W[part] / s[part]).round_().add_(z[part]).clamp_(0, n)
            torch.mul(q.sub_(z[part]), s[part], out=found[part])
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        W, s, z = ctx.saved_tensors
        G = grads[0]
        into_weight = torch.empty_like(W) if ctx.needs_input_grad[0] else None
        into_scale = torch.empty_like(s)
        for part in chunks(W):
            v = W[part] / s[part]
            q = v.round().add_(z[part])
            inside = (q >= 0) & (q <= ctx.n)
            steps = q.clamp_(0, ctx.n).sub_(z[part]).sub_(v.mul_(inside))
            into_scale[part] = steps.mul_(G[part]).sum(1, keepdim=True)
            if into_weight is not None:
                torch.mul(G[part], inside, out=into_weight[part])
        return into_weight, into_scale, None, None


class Transformed:
    """A block with LET: the logarithms of the folds' scales, (channels of the source) each, and learned clips."""

    def __init__(
        self,
        block: nn.Module,
        method: OmniQuant,
        scheme: Scheme,
        folds: list[Fold],
        scales: list[Tensor],
    ) -> None:
        """scales: (in,) at the start, shared as the folds demand."""
        self.block, self.folds, self.lr = block, folds, method.lr_let
        self.logs = []
        for fold, scale in zip(folds, scales, strict=True):
            sources = scale.new_zeros(int(fold.channels.max()) + 1)
            sources[fold.channels] = fold.shared(scale).log()
            self.logs.append(nn.Parameter(sources))
        values = self._values()
        self.weights = {
            name: method.prepare(self._weight(name, values), scheme) for name in linears(block)
        }

    def substitutes(self) -> dict[str, Tensor]:
        """Sources divided, and the rounding of all transformed weights."""
        values = self._values()
        rounded = {
            name: weight(self._weight(name, values)) for name, weight in self.weights.items()
        }
        return values | {
            f"{name}.weight": as_kept(self.block.get_submodule(name), W)
            for name, W in rounded.items()
        }

    @torch.no_grad()
    def export(self) -> BlockResult:
        """The rounded weights, and what else the folds change."""
        values = self._values()
        weights = {
            name: weight.export(self._weight(name, values)) for name, weight in self.weights.items()
        }
        rest = {
            name: value
            for name, value in values.items()
            if name.removesuffix(".weight") not in weights
        }
        return BlockResult(weights, rest)

    def groups(self) -> Groups:
        """Two rates."""
        return [{"params": self.logs, "lr": self.lr}] + [
            g for weight in self.weights.values() for g in weight.groups()
        ]

    def _values(self) -> dict[str, Tensor]:
        values: dict[str, Tensor] = {}
        for fold, log in zip(self.folds, self.logs, strict=True):
            values |= moved(self.block, fold, log[fold.channels].exp().clamp_min(SMALLEST), values)
        return values

    def _weight(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        layer = self.block.get_submodule(name)
        W = values.get(f"{name}.weight")
        if W is None:
            return read_weight(layer).float()
        return as_kept(layer, W)


def largest_inputs(block: nn.Module, inputs: BlockInputs, folds: list[Fold]) -> list[Tensor]:
    """max|x| over the calibration tokens, (in,) float32 for each fold."""
    found = [torch.zeros(len(fold.channels), device=fold.channels.device) for fold in folds]

    def hook(i: int) -> Any:
        def record(module: Any, args: tuple[Any, ...]) -> None:
            found[i] = torch.maximum(found[i], args[0].flatten(0, -2).float().abs().amax(0))

        return record

    with ExitStack() as stack:
        for i, fold in enumerate(folds):
            stack.callback(
                block.get_submodule(fold.layers[0]).register_forward_pre_hook(hook(i)).remove
            )
        for batch, hidden in enumerate(inputs.quantized):
            inputs.run(block, hidden, batch)
    return found


def migration(block: nn.Module, fold: Fold, largest: Tensor) -> Tensor:
    """max|x|^0.5 / max|w|^0.5 per channel, (in,): the start of SmoothQuant, as the authors take it."""
    weight = torch.stack(
        [read_weight(block.get_submodule(name)).float().abs().amax(0) for name in fold.layers]
    ).amax(0)
    return fold.shared(
        (largest.clamp_min(1e-5) / weight.clamp_min(1e-5)).sqrt().clamp_min(SMALLEST)
    )
