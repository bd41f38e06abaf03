"""Where a scale per channel can be moved from one operation into the linear layers that follow, found by probing.

Dividing the channels of a norm's (or of a linear layer's) output by s, and multiplying the columns
of the layers that read it by s, changes nothing in full precision, but changes what rounding does:
the equivalent transformations of SmoothQuant (Xiao et al. 2023, arXiv:2211.10438), AWQ
(arXiv:2306.00978) and OmniQuant (arXiv:2308.13137). Their code lists the places by model family.
Here a block is run on a few tokens, candidates are read off its reactions, and a candidate is kept
only if the block's output stays the same when random scales are folded there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers.pytorch_utils import Conv1D

from qbench.contracts import BlockInputs
from qbench.models.blocks import linears

LENGTH = 32  # tokens of the one sequence that probes
TOLERANCE = 1e-3  # of the verification, relative to what the block adds to its input; a wrong fold is off by 1e-2 to 1


@dataclass(frozen=True, eq=False)
class Fold:
    """A place for a scale per channel, by names within the block.

    layers: the linear layers that read the same input. source: the norm or linear layer that makes
    it. channels: (in,) int64, the output channel of the source that feeds each input channel; under
    grouped-query attention one feeds several, in a fused projection some feed none. offset: the a
    of a norm f(x) (a + weight); None for a linear layer.
    """

    layers: tuple[str, ...]
    source: str
    channels: Tensor
    offset: float | None = None

    def shared(self, scale: Tensor) -> Tensor:
        """(in,) positive -> (in,): the geometric mean over the input channels that one channel of the source feeds."""
        rows = int(self.channels.max()) + 1
        mean = scale.new_zeros(rows).scatter_reduce(
            0, self.channels, scale.log(), "mean", include_self=False
        )
        return mean[self.channels].exp()


def folded(
    block: nn.Module, fold: Fold, scale: Tensor, values: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The source's parameters, by name, that divide its output by `scale`, (in,), equal where `Fold.shared` says so.

    values: parameters that stand in place of the block's own. Differentiable in both; the block
    stays as it is.
    """
    module, own = block.get_submodule(fold.source), _lookup(block, values)
    weight, bias = own(f"{fold.source}.weight"), getattr(module, "bias", None)
    divisor = scale.new_ones(weight.shape[1] if isinstance(module, Conv1D) else len(weight))
    divisor = divisor.scatter_reduce(0, fold.channels, scale, "mean", include_self=False)
    if fold.offset is not None:
        weight = (fold.offset + weight) / divisor - fold.offset
    else:
        weight = weight / divisor if isinstance(module, Conv1D) else weight / divisor[:, None]
    found = {f"{fold.source}.weight": weight}
    return (
        found
        if bias is None
        else found | {f"{fold.source}.bias": own(f"{fold.source}.bias") / divisor}
    )


def moved(
    block: nn.Module, fold: Fold, scale: Tensor, values: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """`folded`, and the weights of the layers with their columns multiplied: together they change nothing."""
    own, found = _lookup(block, values), folded(block, fold, scale, values)
    for name in fold.layers:
        transposed = isinstance(block.get_submodule(name), Conv1D)
        found[f"{name}.weight"] = own(f"{name}.weight") * (scale[:, None] if transposed else scale)
    return found


@torch.no_grad()
def find_folds(block: nn.Module, inputs: BlockInputs) -> list[Fold]:
    """All places of the block, in the order in which their layers run. A few passes over one short sequence."""
    probe = _Probe(block, inputs)
    candidates = [fold for group in probe.groups if (fold := probe.norm(group))]
    rest = [group for group in probe.groups if not any(fold.layers == group for fold in candidates)]
    candidates += probe.sources(rest)
    order = {group: i for i, group in enumerate(probe.groups)}
    return sorted(filter(probe.verifies, candidates), key=lambda fold: order[fold.layers])


def excerpt(block: nn.Module, inputs: BlockInputs, sequences: int, length: int) -> BlockInputs:
    """The beginning of the first batch, cut as far as its recorded arguments allow; the block runs on it."""
    whole = inputs.quantized[0].shape[:2]
    for keep in ((sequences, length), (sequences, whole[1])):
        cut = _cut(inputs, (min(keep[0], whole[0]), min(keep[1], whole[1])))
        try:
            cut.run(block, cut.quantized[0], 0)
        except (
            RuntimeError,
            ValueError,
            IndexError,
        ):  # an argument whose sizes mean something else
            continue
        return cut
    return _cut(inputs, (whole[0], whole[1]))


def has_bias(block: nn.Module, fold: Fold) -> bool:
    """Whether the source is a norm with a bias."""
    return (
        fold.offset is not None
        and getattr(block.get_submodule(fold.source), "bias", None) is not None
    )


def _cut(inputs: BlockInputs, keep: tuple[int, int]) -> BlockInputs:
    batch, length = inputs.quantized[0].shape[:2]

    def shorter(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            return leaf
        leaf = leaf[: keep[0]] if leaf.shape[0] == batch else leaf
        for dim in range(leaf.dim()):
            leaf = leaf.narrow(dim, 0, keep[1]) if leaf.shape[dim] == length else leaf
        return leaf

    hidden = [[stream[0][: keep[0], : keep[1]]] for stream in (inputs.quantized, inputs.full)]
    return replace(
        inputs,
        quantized=hidden[0],
        full=hidden[1],
        arguments=[tree_map(shorter, inputs.arguments[0])],
    )


def _lookup(block: nn.Module, values: Mapping[str, Tensor] | None) -> Any:
    return lambda name: (values or {}).get(name, block.get_parameter(name).detach()).float()


@dataclass
class _Call:
    """What a module was called with, and what it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def rows(self) -> Tensor:
        """(tokens, channels): a linear layer's input."""
        hidden: Tensor = self.args[0]
        return hidden.flatten(0, -2)


class _Probe:
    """A block under examination, in float32 throughout."""

    def __init__(self, block: nn.Module, inputs: BlockInputs) -> None:
        small = excerpt(block, inputs, 1, LENGTH)
        self.inputs = replace(small, arguments=tree_map(_single, small.arguments), dtype=None)
        self.hidden = small.quantized[0].float()
        self.block = block
        self.values = {name: value.detach().float() for name, value in block.named_parameters()}
        self.generator = torch.Generator().manual_seed(0)
        self.modules = {
            name: module for name, module in block.named_modules() if name and _width(module)
        }
        self.calls, self.output = self.run()
        self.order = {name: i for i, name in enumerate(self.calls)}
        self.groups = self._groups()

    def run(
        self,
        values: Mapping[str, Tensor] | None = None,
        outputs: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, _Call], Tensor]:
        """First calls of the modules in the order of execution, and the block's output.

        values: in place of parameters. outputs: what modules are made to give instead of their own.
        """
        calls: dict[str, _Call] = {}
        given = outputs or {}

        def hook(name: str) -> Any:
            def record(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
                calls.setdefault(name, _Call(args, kwargs, output))
                return given.get(name)

            return record

        with ExitStack() as stack:
            for name, module in self.modules.items():
                stack.callback(module.register_forward_hook(hook(name), with_kwargs=True).remove)
            output = self.inputs.run(self.block, self.hidden, 0, self.values | dict(values or {}))
        return calls, output

    def _groups(self) -> list[tuple[str, ...]]:
        """Linear layers that read the same memory, in the order of execution."""
        found: dict[tuple[int, int], list[str]] = {}
        layers = linears(self.block)
        for name, call in self.calls.items():
            if name in layers and call.args and call.args[0].numel():
                found.setdefault((call.args[0].data_ptr(), call.args[0].numel()), []).append(name)
        return [tuple(names) for names in found.values()]

    def norm(self, group: tuple[str, ...]) -> Fold | None:
        """The norm whose output the group reads. Its weight is set to 0 and to 1: f(x) a + b and f(x) (a + 1) + b."""
        read = self.calls[group[0]].args[0]
        for name, module in self.modules.items():
            call = self.calls.get(name)
            if (
                call is None
                or not isinstance(call.output, Tensor)
                or call.output.data_ptr() != read.data_ptr()
            ):
                continue
            weight, bias = self.values[f"{name}.weight"], self.values.get(f"{name}.bias")
            if (
                weight.dim() != 1
                or len(weight) != read.shape[-1]
                or call.output.shape[-1] != len(weight)
            ):
                continue
            own = {} if bias is None else {"bias": bias}
            zero, one = (
                torch.func.functional_call(
                    module, own | {"weight": torch.full_like(weight, value)}, call.args, call.kwargs
                )
                for value in (0.0, 1.0)
            )
            f = one - zero
            centred = zero if bias is None else zero - bias
            offset = float((centred * f).sum() / f.square().sum().clamp_min(1e-30))
            return Fold(
                group,
                name,
                torch.arange(len(weight), device=weight.device),
                float(round(offset, 3)),
            )
        return None

    def sources(self, groups: list[tuple[str, ...]]) -> Iterator[Fold]:
        """Linear layers whose output reaches a group's input channel by channel.

        The source's output is replaced by noise, and then by noise with a distinct factor for each
        of its channels.
        """
        left = list(groups)
        layers = linears(self.block)
        for source in [name for name in self.order if name in layers]:
            later = [
                group
                for group in left
                if self.order[group[0]] > self.order[source] and source not in group
            ]
            output = self.calls[source].output
            width = output.shape[-1]
            noise = torch.randn(output.shape, generator=self.generator).to(output.device)
            before = self.run(outputs={source: noise})[0] if later else {}
            # In a fused gate and up projection only one half reaches the next layer linearly.
            for rows in (slice(None), slice(width // 2, None), slice(0, width // 2)):
                fits = [
                    group for group in later if group in left and self._fits(group, rows, width)
                ]
                factors = noise.new_ones(width)
                factors[rows] = torch.logspace(
                    1, 3, len(factors[rows]), base=2, device=noise.device
                )
                after = self.run(outputs={source: noise * factors})[0] if fits else {}
                for group in fits:
                    channels = _match(before.get(group[0]), after.get(group[0]), factors)
                    if channels is not None:
                        left.remove(group)
                        yield Fold(group, source, channels)

    def _fits(self, group: tuple[str, ...], rows: slice, width: int) -> bool:
        return rows == slice(None) or 2 * self.calls[group[0]].rows.shape[-1] <= width

    def verifies(self, fold: Fold) -> bool:
        """Whether the block's output stays the same when random scales are folded here."""
        random = torch.randn(len(fold.channels), generator=self.generator).to(fold.channels.device)
        scale = fold.shared((random / 2).exp())
        _, output = self.run(moved(self.block, fold, scale, self.values))
        added = self.output - self.hidden if self.output.shape == self.hidden.shape else self.output
        return bool((output - self.output).norm() <= TOLERANCE * added.norm())


def _width(module: nn.Module) -> bool:
    """Whether it is a linear layer, or what may be a norm: one weight per channel."""
    weight = getattr(module, "weight", None)
    return isinstance(module, (nn.Linear, Conv1D)) or (
        isinstance(weight, nn.Parameter) and weight.dim() == 1
    )


def _single(leaf: Any) -> Any:
    return leaf.float() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def _match(before: _Call | None, after: _Call | None, factors: Tensor) -> Tensor | None:
    """(in,) which of the factors, 2 to 8, each input channel was multiplied by; None unless all were by one of them.

    Looked for in all tokens, and then in the first alone: as it can attend to nothing but itself,
    it sees the values of an attention even where its queries and keys were multiplied as well, as
    in a fused projection.
    """
    if before is None or after is None or before.rows.shape != after.rows.shape:
        return None
    ordered, order = factors.sort()
    for tokens in (slice(None), slice(1)):
        x, y = before.rows[tokens], after.rows[tokens]
        largest = x.abs().argmax(0, keepdim=True)
        ratio = (y.gather(0, largest) / x.gather(0, largest))[0].nan_to_num()
        above = torch.searchsorted(ordered, ratio).clamp(1, len(ordered) - 1)
        nearest = torch.where(ratio - ordered[above - 1] < ordered[above] - ratio, above - 1, above)
        factor = ordered[nearest]
        spacing = math.log(4) / len(factors)  # between factors, relative
        fits = ((ratio / factor - 1).abs() < min(spacing / 4, 1e-3)) & (factor > 1)
        fits &= (y - x * factor).abs().amax(0) <= 1e-4 * y.abs().amax(0)
        if fits.all():
            return order[nearest]
    return None
