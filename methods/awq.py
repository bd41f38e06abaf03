"""AWQ, activation-aware weight quantization: scale up the input channels that matter before rounding, then clip.

Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan and Han 2024, MLSys, arXiv:2306.00978; details
from the authors' code (mit-han-lab/llm-awq). For linear layers that read the same input x, with Q
rounding to nearest,

    min over r in {0, 1/20, ..., 19/20} of mean ( f(Q(W diag s); x / s) - f(W; x) )^2,    s = mean|x|^r,

where f is the smallest module that holds the layers: the attention for queries, keys and values,
the MLP for its gate and up projections, the layer itself where it is alone. 1/s goes into what
makes x (`qbench.calibration.folding`).

Differences. Inputs are those of the quantized prefix, as at inference; the authors take the
full-precision model's. Under grouped-query attention s is shared by the heads that share values;
the authors leave o_proj out.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from qbench.calibration.folding import Fold, excerpt, find_folds, moved
from qbench.contracts import BlockInputs, BlockResult, Scheme
from qbench.errors import ConfigError, MethodError
from qbench.formats import Uniform
from qbench.formats.packing import as_stored
from qbench.methods.rtn import RTN, Grid, range_grid, round_to_grid, weight_range
from qbench.models.blocks import as_kept, linears, read_weight

CHUNK = 1 << 22  # partial products held at a time in the search of clips


@dataclass(frozen=True)
class AWQ:
    """Activation-aware scales and clips, on the grid of `rtn`.

    grid: steps of the ratio r; every other is tried, and then the neighbours of the best. clip:
    `awq` shrinks the range of a group where that lowers the error of its part of the output; it
    tries 1 - i/clip_grid down to 1 - max_shrink. zero_point: as in `rtn`. Of the calibration
    tokens, mean_tokens give mean|x|, in whole batches, scale_tokens judge the scales, in whole
    sequences, and clip_tokens the clips: one is chosen for many, so that few tokens decide.
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

    def __post_init__(self) -> None:
        counts = (self.grid, self.clip_grid, self.mean_tokens, self.scale_tokens, self.clip_tokens)
        if min(counts) < 1 or not 0 < self.max_shrink < 1:
            raise ConfigError(
                f"grid, clip_grid, mean_tokens, scale_tokens, clip_tokens = {counts}, max_shrink={self.max_shrink}: "
                "counts must be 1 or more, max_shrink within 0..1"
            )

    def quantize_block(
        self, block: nn.Module, inputs: BlockInputs, targets: list[Tensor], scheme: Scheme
    ) -> BlockResult:
        """Search the scales of every fold, then the clips of its layers; fold and round.

        On its own metric no site ends above plain rounding (r = 0, no clip). MethodError where an
        output is not finite.
        """
        sites = observe(block, inputs, self.mean_tokens, self.scale_tokens, self.clip_tokens)
        log: dict[str, Any] = {}
        ratios: dict[str, Tensor] = {}
        values: dict[str, Tensor] = {}
        for i, site in enumerate(sites):
            inputs.progress(i / len(sites), f"searching {site.layers[0]}")
            if not site.calls:
                continue
            scale, entry = self._scale(site, scheme)
            if site.fold is not None and scale is not None:
                values |= moved(block, site.fold, scale, values)
            if self.clip == "awq":
                ratios |= self._clips(site, scheme, scale, entry)
            log[" ".join(site.layers)] = entry
        unseen = {name for site in sites if not site.calls for name in site.layers}
        weights = {}
        for name, layer in linears(block).items():
            W = values.pop(f"{name}.weight", layer.weight.detach())
            W = as_kept(layer, W).float()
            if name in unseen:  # an expert that no token reached: nothing is known but its weights
                weights[name] = RTN(zero_point=self.zero_point).quantize_weight(W, scheme)
            else:
                weights[name] = self._rounded(W, scheme, ratios.get(name))
        return BlockResult(weights, values, log)

    def _scale(self, site: Site, scheme: Scheme) -> tuple[Tensor | None, dict[str, Any]]:
        """The best scale, (in,), None where it is 1, and what is logged. Equations 4 and 5."""
        W = site.weights()
        errors = {0: site.error({name: self._dense(w, scheme) for name, w in W.items()})}
        if not math.isfinite(errors[0]):
            raise MethodError(
                f"the outputs of {site.layers[0]} are not finite; check the model and the calibration text"
            )
        if site.fold is None:
            return None, {"plain": _short(errors[0]), "scaled": _short(errors[0])}

        def judge(steps: list[int]) -> int:
            for k in steps:
                s = site.scale(k / self.grid)
                errors[k] = site.error(
                    {name: self._dense(w * s, scheme) / s for name, w in W.items()}
                )
            return min(errors, key=lambda k: errors[k] if math.isfinite(errors[k]) else math.inf)

        best = judge([*range(2, self.grid, 2)])
        best = judge([k for k in (best - 1, best + 1) if 0 < k < self.grid])
        entry = {
            "ratio": best / self.grid,
            "plain": _short(errors[0]),
            "scaled": _short(errors[best]),
        }
        return site.scale(best / self.grid) if best else None, entry

    def _clips(
        self, site: Site, scheme: Scheme, scale: Tensor | None, entry: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Shrink ratios (out, groups) by layer, where they help.

        The authors leave queries and keys unclipped, by name, as their outputs meet in a product
        that the search does not see. Here f sees it: a layer's clips are kept only where they lower
        the error of f.
        """
        s = site.total.new_ones(()) if scale is None else scale
        W = {name: w * s for name, w in site.weights().items()}
        dense = {name: self._dense(w, scheme) / s for name, w in W.items()}
        lowest = site.error(dense)
        kept = {}
        for name, w in W.items():
            ratio = self._shrink(w, site.rows() / s, scheme)
            trial = dense | {name: self._dense(w, scheme, ratio) / s}
            error = site.error(trial)
            if error < lowest:
                lowest, dense, kept[name] = error, trial, ratio
        entry |= {"clipped": _short(lowest), "clips": list(kept)}
        return kept

    def _shrink(self, W: Tensor, X: Tensor, scheme: Scheme) -> Tensor:
        """W (out, in), X (tokens, in) -> ratios (out, groups), each with the least mean (x w - x Q(w))^2 of its group.

        Q rounds to the grid of the clamped weights.
        """
        W = W.unflatten(1, (-1, scheme.group_length(W.shape[1])))  # (out, groups, g)
        X = X.unflatten(1, W.shape[1:]).transpose(0, 1)  # (groups, tokens, g)
        found = []
        for part in W.split(max(1, CHUNK // (X.shape[0] * X.shape[1]))):
            best = part.new_full(part.shape[:2], math.inf)
            chosen = torch.ones_like(best)
            for i in range(max(1, round(self.max_shrink * self.clip_grid))):
                ratio = torch.full_like(best, 1 - i / self.clip_grid)
                change = self._dense(part, scheme, ratio).view_as(part) - part
                error = torch.bmm(X, change.permute(1, 2, 0)).square_().sum(1).T  # (out, groups)
                better = error < best
                best, chosen = torch.where(better, error, best), torch.where(better, ratio, chosen)
            found.append(chosen)
        return torch.cat(found)

    def _rounded(self, W: Tensor, scheme: Scheme, ratio: Tensor | None) -> Uniform:
        W = W.unflatten(1, (-1, scheme.group_length(W.shape[1])))
        s, z = self._grid(W, scheme, ratio)
        return Uniform.from_codes(round_to_grid(W, s, z, scheme.bits).flatten(1), s, z, scheme.bits)

    def _dense(self, W: Tensor, scheme: Scheme, ratio: Tensor | None = None) -> Tensor:
        """What `_rounded` dequantizes to, without the packing."""
        W = W if W.dim() == 3 else W.unflatten(1, (-1, scheme.group_length(W.shape[1])))
        s, z = self._grid(W, scheme, ratio)
        zero = torch.full_like(s, 2.0 ** (scheme.bits - 1)) if z is None else z
        codes = round_to_grid(W, s, z, scheme.bits)
        return (codes.float().sub_(zero.float()[..., None]).mul_(s.float()[..., None])).flatten(1)

    def _grid(self, W: Tensor, scheme: Scheme, ratio: Tensor | None) -> Grid:
        """(out, groups, g) clamped to `ratio` (out, groups) times the largest magnitude of the group -> its grid."""
        integer = self.zero_point == "integer"
        low, high = weight_range(W, scheme.symmetric, integer)
        if ratio is not None:
            limit = torch.maximum(low.abs(), high.abs()) * ratio
            low, high = torch.maximum(low, -limit), torch.minimum(high, limit)
        s, z = range_grid(low, high, scheme, 1.0, integer)
        if scheme.symmetric:
            return as_stored(s), None
        return as_stored(s), z.to(torch.uint8) if integer else as_stored(z)


@dataclass
class Site:
    """Linear layers that are searched together: those of a fold, or one alone.

    total: (in,) sum of |x| over `count` tokens. sample: rows of x, for clips. calls: of the module
    f, with its outputs.
    """

    block: nn.Module
    layers: tuple[str, ...]
    fold: Fold | None
    dtype: torch.dtype | None
    total: Tensor
    count: int = 0
    sample: list[Tensor] = field(default_factory=list)
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = field(default_factory=list)

    @property
    def module(self) -> str:
        """The smallest module that holds all layers; the empty name is the block."""
        parts = zip(*(name.split(".") for name in self.layers), strict=False)
        return ".".join(part[0] for part in takewhile(lambda part: len(set(part)) == 1, parts))

    def rows(self) -> Tensor:
        """(tokens, in) float32."""
        return torch.cat(self.sample)

    def weights(self) -> dict[str, Tensor]:
        """(out, in) float32 by layer."""
        return {name: read_weight(self.block.get_submodule(name)).float() for name in self.layers}

    def scale(self, ratio: float) -> Tensor:
        """(in,) mean|x|^ratio, not below 1e-4, centred so that its smallest and largest are reciprocal."""
        scale = (self.total / self.count).pow(ratio).clamp_min(1e-4)
        scale = scale if self.fold is None else self.fold.shared(scale)
        return scale / (scale.max() * scale.min()).sqrt()

    def error(self, weights: dict[str, Tensor]) -> float:
        """Mean squared change of f's output with these weights, (out, in), in place of the layers' own."""
        path = self.module
        values = {}
        for name, weight in weights.items():
            key = f"{name}.weight".removeprefix(f"{path}." if path else "")
            values[key] = as_kept(self.block.get_submodule(name), weight)
        module = self.block.get_submodule(path)
        total, size = 0.0, 0
        for args, kwargs, target in self.calls:
            low = self.dtype not in (None, torch.float32)
            with torch.autocast(target.device.type, self.dtype, enabled=low, cache_enabled=False):
                output = torch.func.functional_call(module, values, args, kwargs)
            output = output[0] if isinstance(output, tuple) else output
            total += (output.float() - target.float()).square().sum().item()
            size += output.numel()
        return total / max(1, size)


def observe(
    block: nn.Module, inputs: BlockInputs, mean_tokens: int, scale_tokens: int, clip_tokens: int
) -> list[Site]:
    """All sites of a block, with what its full-precision run on the quantized prefix's hidden states shows."""
    layers = linears(block)
    folds = {fold.layers[0]: fold for fold in find_folds(block, inputs)}
    covered = {name for fold in folds.values() for name in fold.layers}
    sites = []
    for name, layer in layers.items():
        if name in folds or name not in covered:
            group = folds[name].layers if name in folds else (name,)
            total = torch.zeros(read_weight(layer).shape[1], device=layer.weight.device)
            sites.append(Site(block, group, folds.get(name), inputs.dtype, total))
    size, length = inputs.quantized[0].shape[:2]
    some = _every(inputs, math.ceil(mean_tokens / (size * length)))
    per_batch = math.ceil(clip_tokens / len(some.quantized))
    _watch(block, some, [(site.layers[0], partial(_read, site, per_batch)) for site in sites])
    sequences = max(1, scale_tokens // length)
    few = (
        excerpt(block, inputs, sequences, length)
        if sequences < size
        else _every(inputs, sequences // size)
    )
    _watch(block, few, [(site.module, partial(_keep, site)) for site in sites])
    return sites


def _every(inputs: BlockInputs, batches: int) -> BlockInputs:
    """That many batches, evenly spread."""
    count = len(inputs.quantized)
    chosen = [i * count // min(batches, count) for i in range(min(batches, count))]
    return replace(
        inputs,
        quantized=[inputs.quantized[i] for i in chosen],
        arguments=[inputs.arguments[i] for i in chosen],
    )


def _watch(block: nn.Module, inputs: BlockInputs, hooks: list[tuple[str, Any]]) -> None:
    with ExitStack() as stack:
        for name, hook in hooks:
            stack.callback(
                block.get_submodule(name).register_forward_hook(hook, with_kwargs=True).remove
            )
        for batch, hidden in enumerate(inputs.quantized):
            inputs.run(block, hidden, batch)


def _read(
    site: Site, tokens: int, module: Any, args: tuple[Any, ...], kwargs: Any, output: Any
) -> None:
    rows = args[0].flatten(0, -2).float()
    site.total += rows.abs().sum(0)
    site.count += len(rows)
    site.sample.append(rows[:: max(1, len(rows) // tokens)][:tokens])


def _keep(
    site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    site.calls.append((args, kwargs, output[0] if isinstance(output, tuple) else output))


def _short(value: float) -> float:
    """Five digits."""
    return float(f"{value:.5g}")
