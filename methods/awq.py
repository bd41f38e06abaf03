"""AWQ: scale up the input channels that activations make matter, round, and clip.

Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan and Han 2024, MLSys, arXiv:2306.00978; details
from the authors' code (mit-han-lab/llm-awq). For linear layers that read the same input x, with Q
rounding to nearest,

    min over r in {0, 1/20, ..., 19/20} of mean ( f(Q(W diag s); x / s) - f(W; x) )^2,
    s = mean|x|^r,

where f is the smallest module that holds the layers: the attention for queries, keys and values,
the MLP for its gate and up projections, the layer itself where it is alone. 1/s goes into what
makes x (`qbench.calibration.folding`).

Differences. Inputs are those of the quantized prefix, as at inference; the authors take the
full-precision model's. Under grouped-query attention s is shared by the heads that share values;
the authors leave o_proj out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qbench.calibration.folding import moved
from qbench.contracts import BlockInputs, BlockResult, Scheme
from qbench.errors import ConfigError, MethodError
from qbench.formats import Uniform
from qbench.formats.snapping import check_scale_bits
from qbench.formats.stepped import values
from qbench.methods.grids import (
    TINY,
    SnappedGrid,
    range_grid,
    round_to_grid,
    stored_grid,
    weight_range,
    zero_as_float,
)
from qbench.methods.rtn import RTN
from qbench.methods.scale_sites import Site, observe
from qbench.models.blocks import as_kept, linears

# Partial products held at a time in the search of clips, on a CPU and elsewhere.
CHUNK = 1 << 22
GPU_CHUNK = 1 << 27


@dataclass(frozen=True)
class AWQ:
    """Activation-aware scales and clips, on the grid of `rtn`.

    grid: steps of the ratio r; every other one is tried, and then the neighbours of the best.
    clip: `awq` shrinks the range of a group where that lowers the error of its part of the output;
        `none` does not.
    clip_grid, max_shrink: the ranges that are tried are 1 - i/clip_grid, down to 1 - max_shrink.
    zero_point, scale_bits: as in `rtn`.
    mean_tokens: calibration tokens for mean|x|, in whole batches.
    scale_tokens: calibration tokens that judge the scales, in whole sequences.
    clip_tokens: calibration tokens that judge the clips. Few are enough for these choices.
    """

    name: ClassVar[str] = "awq"
    paper: ClassVar[str] = "Lin et al., AWQ, MLSys 2024, arXiv:2306.00978"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True

    grid: int = 20
    clip: Literal["awq", "none"] = "awq"
    clip_grid: int = 20
    max_shrink: float = 0.5
    zero_point: Literal["integer", "real"] = "integer"
    mean_tokens: int = 8192
    scale_tokens: int = 2048
    clip_tokens: int = 512
    scale_bits: int = 16

    def __post_init__(self) -> None:
        check_scale_bits(self.scale_bits)
        counts = (self.grid, self.clip_grid, self.mean_tokens, self.scale_tokens, self.clip_tokens)
        if min(counts) < 1 or not 0 < self.max_shrink < 1:
            raise ConfigError(
                f"grid, clip_grid, mean_tokens, scale_tokens, clip_tokens = {counts}, "
                f"max_shrink={self.max_shrink}: counts must be 1 or more, max_shrink within 0..1"
            )

    def quantize_block(
        self, block: nn.Module, inputs: BlockInputs, targets: list[Tensor], scheme: Scheme
    ) -> BlockResult:
        """Search the scales of every fold, then the clips of its layers; fold and round.

        On its own metric no site ends above plain rounding (r = 0, no clip). The targets are not
        used. MethodError where an output is not finite.
        """
        layers = linears(block)
        asked = scheme.of_layers(layers)
        tokens = self.mean_tokens, self.scale_tokens, self.clip_tokens
        sites = observe(block, inputs, scheme, *tokens)
        log: dict[str, Any] = {}
        ratios: dict[str, Tensor] = {}  # of clips, (out, groups), by layer
        values: dict[str, Tensor] = {}  # parameters that folding changes, by name
        unseen: set[str] = set()
        for i, site in enumerate(sites):
            inputs.progress(i / len(sites), f"searching {site.layers[0]}")
            if not site.calls:  # an expert that no token reached
                unseen.update(site.layers)
                continue
            scale, entry = self._scale(site, asked)
            if site.fold is not None and scale is not None:
                values |= moved(block, site.fold, scale, values)
            if self.clip == "awq":
                ratios |= self._clips(site, asked, scale, entry)
            log[" ".join(site.layers)] = entry
        weights = {}
        for name, own in asked.items():
            # A weight that folds have scaled, else the layer's own. What stays in `values` are
            # norms, biases and whatever else the folds divide by the scales.
            W = values.pop(f"{name}.weight", layers[name].weight.detach())
            W = as_kept(layers[name], W).float()  # (out, in)
            if name in unseen:  # nothing is known but its weights
                weights[name] = RTN(
                    zero_point=self.zero_point, scale_bits=self.scale_bits
                ).quantize_weight(W, own)
            else:
                weights[name] = self._rounded(W, own, ratios.get(name))
        return BlockResult(weights, values, log)

    def _scale(
        self, site: Site, asked: Mapping[str, Scheme]
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """The best scale, (in,), None where it is 1, and what is logged. Equations 4 and 5.

        asked: of each layer.
        """
        W = site.weights()
        plain = site.error({name: self._dense(w, asked[name]) for name, w in W.items()})
        if not math.isfinite(plain):
            raise MethodError(
                f"the outputs of {site.layers[0]} are not finite; "
                "check the model and the calibration text"
            )
        if site.fold is None:
            return None, {"plain": _short(plain), "scaled": _short(plain)}

        # By steps k of the ratio, r = k / grid; k = 0 is plain rounding.
        errors = {0: plain}
        self._try_ratios(site, asked, W, range(2, self.grid, 2), errors)
        # The steps that were left out, on both sides of the best.
        best = _least(errors)
        neighbours = [k for k in (best - 1, best + 1) if 0 < k < self.grid]
        self._try_ratios(site, asked, W, neighbours, errors)
        best = _least(errors)
        entry = {
            "ratio": best / self.grid,
            "plain": _short(plain),
            "scaled": _short(errors[best]),
        }
        scale = site.scale(best / self.grid) if best else None
        return scale, entry

    def _try_ratios(
        self,
        site: Site,
        asked: Mapping[str, Scheme],
        W: dict[str, Tensor],
        steps: Iterable[int],
        errors: dict[int, float],
    ) -> None:
        """Enter into `errors`, by step k of the ratio, the error with Q(W diag s) diag(1/s)."""
        for k in steps:
            s = site.scale(k / self.grid)
            # The layer gets x itself here: Q(W diag s) (x / s) = Q(W diag s) diag(1/s) x.
            scaled = {}
            for name, w in W.items():
                scaled[name] = self._dense(w * s, asked[name]) / s
            errors[k] = site.error(scaled)

    def _clips(
        self,
        site: Site,
        asked: Mapping[str, Scheme],
        scale: Tensor | None,
        entry: dict[str, Any],
    ) -> dict[str, Tensor]:
        """Shrink ratios (out, groups) by layer, where they help.

        The authors leave queries and keys unclipped, by name, as their outputs meet in a product
        that the search does not see. Here f sees it: a layer's clips are kept only where they lower
        the error of f.
        """
        s = scale
        if s is None:
            s = site.total.new_ones(())
        # All of the clips are searched for W diag s, which sees the inputs x / s.
        W = {name: w * s for name, w in site.weights().items()}
        dense = {name: self._dense(w, asked[name]) / s for name, w in W.items()}
        # Layer by layer, on top of the clips that were kept before.
        lowest = site.error(dense)
        kept = {}
        for name, w in W.items():
            ratio = self._shrink(w, site.rows() / s, asked[name])
            trial = dense | {name: self._dense(w, asked[name], ratio) / s}
            error = site.error(trial)
            if error < lowest:
                lowest = error
                dense = trial
                kept[name] = ratio
        entry |= {"clipped": _short(lowest), "clips": list(kept)}
        return kept

    def _shrink(self, W: Tensor, X: Tensor, scheme: Scheme) -> Tensor:
        """Ratios (out, groups), each with the least mean (x w - x Q(w))^2 of its group.

        W (out, in) weight, X (tokens, in) inputs. Q rounds to the grid of the clamped weights.
        """
        W = W.unflatten(1, (-1, scheme.group_length(W.shape[1])))  # (out, groups, g)
        X = X.unflatten(1, W.shape[1:]).transpose(0, 1)  # (groups, tokens, g)
        products = X.shape[0] * X.shape[1]  # partial products of one output
        held = CHUNK if W.device.type == "cpu" else GPU_CHUNK
        chosen = []
        for part in W.split(max(1, held // products)):
            least = part.new_full(part.shape[:2], math.inf)  # (out, groups)
            best = torch.ones_like(least)
            # Ratios 1, 1 - 1/clip_grid, ..; the last one is still above 1 - max_shrink.
            for i in range(max(1, round(self.max_shrink * self.clip_grid))):
                ratio = torch.full_like(least, 1 - i / self.clip_grid)
                # (out, groups, g); x Q(w) - x w = x change
                change = self._dense(part, scheme, ratio).view_as(part) - part
                # (groups, tokens, g) @ (groups, g, out), summed over the tokens
                error = torch.bmm(X, change.permute(1, 2, 0)).square_().sum(1).T  # (out, groups)
                better = error < least
                least = torch.where(better, error, least)
                best = torch.where(better, ratio, best)
            chosen.append(best)
        return torch.cat(chosen)

    def _rounded(self, W: Tensor, scheme: Scheme, ratio: Tensor | None) -> Uniform:
        """W (out, in), rounded to the grid that `ratio` (out, groups) clips."""
        W = W.unflatten(1, (-1, scheme.group_length(W.shape[1])))  # (out, groups, g)
        s, z = self._grid(W, scheme, ratio)
        codes = round_to_grid(W, values(s), values(z), scheme.bits).flatten(1)
        return Uniform.from_codes(codes, s, z, scheme.bits)

    def _dense(self, W: Tensor, scheme: Scheme, ratio: Tensor | None = None) -> Tensor:
        """(out, in) float32: what `_rounded` dequantizes to, without the packing.

        W: (out, in), or (out, groups, g).
        """
        if W.dim() == 2:
            W = W.unflatten(1, (-1, scheme.group_length(W.shape[1])))
        scale, zero_numbers = self._grid(W, scheme, ratio)
        s, z = values(scale), values(zero_numbers)
        zero = zero_as_float(s, z, scheme.bits)
        q = round_to_grid(W, s, z, scheme.bits).float()
        return q.sub_(zero[..., None]).mul_(s.float()[..., None]).flatten(1)  # s (q - z)

    def _grid(self, W: Tensor, scheme: Scheme, ratio: Tensor | None) -> SnappedGrid:
        """The grid (out, groups) of W (out, groups, g), clamped where a ratio is there.

        ratio: (out, groups), of the largest magnitude of the group.
        """
        integer = self.zero_point == "integer"
        low, high = weight_range(W, scheme.symmetric, integer)
        if ratio is not None:
            # Weights are clamped to +-limit; an end of the range within it stays where it is.
            limit = torch.maximum(low.abs(), high.abs()) * ratio
            low = torch.maximum(low, -limit)
            high = torch.minimum(high, limit)
        s, z = range_grid(low, high, scheme, 1.0, integer)

        def zeros(step: Tensor) -> Tensor:
            """Those that belong to scales (out, groups) as they are stored."""
            return (-low / step.float().clamp_min(TINY)).round_().clamp_(0, 2**scheme.bits - 1)

        return stored_grid(s, z, scheme, self.scale_bits, zeros if integer else None)


def _least(errors: dict[int, float]) -> int:
    """The key with the least error; one that is not finite is never the least."""
    return min(errors, key=lambda k: errors[k] if math.isfinite(errors[k]) else math.inf)


def _short(value: float) -> float:
    """Rounded to five digits, for the log."""
    return float(f"{value:.5g}")
