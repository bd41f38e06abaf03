"""Where AWQ searches a scale: linear layers that share an input, and what a block shows of them.

A site is run on its own again and again, so the calls of its module f and their outputs are
recorded once, with the block in full precision on the hidden states of the quantized prefix.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qbench.calibration.folding import Fold
from qbench.calibration.folding_search import excerpt, find_folds
from qbench.calibration.watching import watch
from qbench.contracts import BlockInputs, Scheme
from qbench.models.blocks import as_kept, linears, read_weight


@dataclass
class Site:
    """Linear layers that are searched together: those of a fold, or one alone.

    total: (in,) sum of |x| over `count` tokens. sample: rows of x, (tokens, in) each, for clips.
    calls: positional and keyword arguments of the module f, with its output. dtype: in which matrix
    products are computed.
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
        """The name of f, the smallest module that holds all layers; empty for the block."""
        common: list[str] = []
        for parts in zip(*(name.split(".") for name in self.layers), strict=False):
            if len(set(parts)) > 1:
                break
            common.append(parts[0])
        return ".".join(common)

    def rows(self) -> Tensor:
        """The sampled inputs, (tokens, in) float32."""
        return torch.cat(self.sample)

    def weights(self) -> dict[str, Tensor]:
        """The layers' own weights, (out, in) float32, by name."""
        return {name: read_weight(self.block.get_submodule(name)).float() for name in self.layers}

    def scale(self, ratio: float) -> Tensor:
        """(in,) mean|x|^ratio, not below 1e-4, with reciprocal smallest and largest entries."""
        scale = (self.total / self.count).pow(ratio).clamp_min(1e-4)
        if self.fold is not None:
            scale = self.fold.shared(scale)
        # Divided by the geometric mean of its ends: then max = 1 / min.
        return scale / (scale.max() * scale.min()).sqrt()

    def error(self, weights: dict[str, Tensor]) -> float:
        """Mean squared change of f's output with these weights, (out, in), for the layers' own."""
        path = self.module
        module = self.block.get_submodule(path)
        values = {}
        for name, weight in weights.items():
            key = f"{name}.weight"
            if path:
                key = key.removeprefix(f"{path}.")  # as `functional_call` of the module wants it
            values[key] = as_kept(self.block.get_submodule(name), weight)
        low = self.dtype not in (None, torch.float32)
        total = 0.0
        size = 0
        for args, kwargs, target in self.calls:
            with torch.autocast(target.device.type, self.dtype, enabled=low, cache_enabled=False):
                output = torch.func.functional_call(module, values, args, kwargs)
            output = _hidden(output)
            total += (output.float() - target.float()).square().sum().item()
            size += output.numel()
        return total / max(1, size)


def observe(
    block: nn.Module,
    inputs: BlockInputs,
    scheme: Scheme,
    mean_tokens: int,
    scale_tokens: int,
    clip_tokens: int,
) -> list[Site]:
    """All sites of a block, with what its run on the quantized prefix's hidden states shows.

    scheme: layers that it leaves as they are have no site.

    mean_tokens give `total`, in whole batches; scale_tokens give `calls`, in whole sequences;
    clip_tokens give `sample`.
    """
    sites = _sites(block, inputs, scheme)
    batch_size, length = inputs.quantized[0].shape[:2]
    spread = _every(inputs, math.ceil(mean_tokens / (batch_size * length)))
    # So many rows of each batch that all batches together give clip_tokens.
    per_batch = math.ceil(clip_tokens / len(spread.quantized))
    watch(block, spread, [(site.layers[0], partial(_read, site, per_batch)) for site in sites])
    sequences = max(1, scale_tokens // length)
    # Fewer sequences than a batch has are cut out of the first one.
    if sequences < batch_size:
        judging = excerpt(block, inputs, sequences, length)
    else:
        judging = _every(inputs, sequences // batch_size)
    watch(block, judging, [(site.module, partial(_keep, site)) for site in sites])
    return sites


def _sites(block: nn.Module, inputs: BlockInputs, scheme: Scheme) -> list[Site]:
    """One site for every fold, and one for every linear layer outside of folds, still empty."""
    folds = {}
    covered: set[str] = set()
    for fold in find_folds(block, inputs):
        if fold.may_change(scheme):
            folds[fold.layers[0]] = fold
            covered.update(fold.layers)
    sites = []
    for name in scheme.of_layers(linears(block)):
        if name in folds:
            layers = folds[name].layers
        elif name not in covered:
            layers = (name,)
        else:
            continue  # with the first layer of its fold
        weight = read_weight(block.get_submodule(name))
        total = torch.zeros(weight.shape[1], device=weight.device)
        sites.append(Site(block, layers, folds.get(name), inputs.dtype, total))
    return sites


def _every(inputs: BlockInputs, batches: int) -> BlockInputs:
    """That many batches, or all, evenly spread."""
    count = len(inputs.quantized)
    batches = min(batches, count)
    quantized = []
    arguments = []
    for k in range(batches):
        i = k * count // batches
        quantized.append(inputs.quantized[i])
        arguments.append(inputs.arguments[i])
    return replace(inputs, quantized=quantized, arguments=arguments)


def _read(
    site: Site, tokens: int, module: Any, args: tuple[Any, ...], kwargs: Any, output: Any
) -> None:
    """A hook on the site's first layer: sum |x|, and sample that many rows."""
    rows = args[0].flatten(0, -2).float()  # (tokens, in)
    site.total += rows.abs().sum(0)
    site.count += len(rows)
    # Evenly spread over the batch.
    stride = max(1, len(rows) // tokens)
    site.sample.append(rows[::stride][:tokens])


def _keep(
    site: Site, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
) -> None:
    """A hook on the module f: record its call."""
    site.calls.append((args, kwargs, _hidden(output)))


def _hidden(output: Any) -> Tensor:
    """What a module returns, without what an attention returns beside it."""
    hidden: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return hidden
