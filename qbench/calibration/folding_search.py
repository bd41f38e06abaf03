"""Where a block has places for a scale per channel, found by running it on a few tokens.

The code of SmoothQuant, AWQ and OmniQuant lists these places by model family. Here candidates are
read off a block's reactions, and a candidate is kept only if the block's output stays the same when
random scales are folded there.
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

from qbench.calibration.folding import Fold, moved
from qbench.contracts import BlockInputs
from qbench.models.blocks import linears

LENGTH = 32  # tokens of the one sequence that probes
# Of the verification, relative to what the block adds to its input; a wrong fold is off by 1e-2 or
# more.
TOLERANCE = 1e-3


@torch.no_grad()
def find_folds(block: nn.Module, inputs: BlockInputs) -> list[Fold]:
    """All places of the block, in the order in which their layers run.

    It takes a few passes over one short sequence.
    """
    probe = _Probe(block, inputs)
    candidates = []
    rest = []  # groups that no norm feeds
    for group in probe.groups:
        fold = probe.norm(group)
        if fold is None:
            rest.append(group)
        else:
            candidates.append(fold)
    candidates += probe.sources(rest)
    # What the names or shapes suggest is not trusted: the block's output decides.
    verified = [fold for fold in candidates if probe.verifies(fold)]
    return sorted(verified, key=lambda fold: probe.groups.index(fold.layers))


def excerpt(block: nn.Module, inputs: BlockInputs, sequences: int, length: int) -> BlockInputs:
    """The beginning of the first batch, cut as far as its recorded arguments allow.

    sequences, length: at most so many, and tokens of each. The block runs on what is returned:
    where an argument cannot be cut in length, or not at all, more is kept.
    """
    size, whole = inputs.quantized[0].shape[:2]
    for tokens in (length, whole):
        cut = _cut(inputs, min(sequences, size), min(tokens, whole))
        try:
            cut.run(block, cut.quantized[0], 0)
        except (RuntimeError, ValueError, IndexError):
            continue  # an argument whose sizes mean something else
        return cut
    return _cut(inputs, size, whole)


def _cut(inputs: BlockInputs, sequences: int, tokens: int) -> BlockInputs:
    """The first sequences of the first batch, their first tokens, in all tensors of its call."""
    batch, length = inputs.quantized[0].shape[:2]

    def shorter(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim():
            return leaf
        # Position embeddings and masks may have a batch of 1, which stays.
        if leaf.shape[0] == batch:
            leaf = leaf[:sequences]
        for dim in range(leaf.dim()):  # a mask has the length twice: of queries and of keys
            if leaf.shape[dim] == length:
                leaf = leaf.narrow(dim, 0, tokens)
        return leaf

    return replace(
        inputs,
        quantized=[inputs.quantized[0][:sequences, :tokens]],
        full=[inputs.full[0][:sequences, :tokens]],
        arguments=[tree_map(shorter, inputs.arguments[0])],
    )


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
        self.modules: dict[str, nn.Module] = {}
        for name, module in block.named_modules():
            if name and _may_fold(module):  # the block itself has no name
                self.modules[name] = module
        self.calls, self.output = self.run()
        self.order = list(self.calls)  # of execution
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
        replaced = outputs or {}

        def hook(name: str) -> Any:
            def record(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
                calls.setdefault(name, _Call(args, kwargs, output))
                # What a hook returns takes the place of the output, unless it is None.
                return replaced.get(name)

            return record

        with ExitStack() as stack:  # takes every hook off again, also where the block fails
            for name, module in self.modules.items():
                stack.callback(module.register_forward_hook(hook(name), with_kwargs=True).remove)
            output = self.inputs.run(self.block, self.hidden, 0, self.values | dict(values or {}))
        return calls, output

    def _groups(self) -> list[tuple[str, ...]]:
        """Linear layers that read the same memory, in the order of execution."""
        # By address and size of the input: q, k and v are given one tensor. It is not freed and
        # used anew within the pass, as the calls hold it.
        readers: dict[tuple[int, int], list[str]] = {}
        layers = linears(self.block)
        for name, call in self.calls.items():
            if name in layers and call.args and call.args[0].numel():
                read = call.args[0]
                readers.setdefault((read.data_ptr(), read.numel()), []).append(name)
        return [tuple(names) for names in readers.values()]

    def norm(self, group: tuple[str, ...]) -> Fold | None:
        """The norm whose output the group reads, as a fold; None where there is none."""
        read = self.calls[group[0]].args[0]
        for name in self.modules:
            call = self.calls.get(name)
            if call is None or not isinstance(call.output, Tensor):
                continue
            if call.output.data_ptr() != read.data_ptr():
                continue
            # A linear layer, whose weight has two axes, is a case for `sources`.
            weight = self.values[f"{name}.weight"]
            width = read.shape[-1]
            if weight.shape == (width,) and call.output.shape[-1] == width:
                channels = torch.arange(width, device=weight.device)
                return Fold(group, name, channels, self._offset(name))
        return None

    def _offset(self, name: str) -> float:
        """The a of a norm f(x) (a + weight) + bias, from its outputs with weight 0 and weight 1."""
        module = self.modules[name]
        call = self.calls[name]
        weight = self.values[f"{name}.weight"]
        bias = self.values.get(f"{name}.bias")

        def output(value: float) -> Tensor:
            own = {"weight": torch.full_like(weight, value)}
            if bias is not None:
                own["bias"] = bias
            result: Tensor = torch.func.functional_call(module, own, call.args, call.kwargs)
            return result

        zero = output(0.0)  # f(x) a + bias
        f = output(1.0) - zero  # f(x) (a + 1) + bias, less that
        centred = zero  # f(x) a
        if bias is not None:
            centred = zero - bias
        # Least squares of f(x) a over f(x), without the rounding errors of float32.
        offset = float((centred * f).sum() / f.square().sum().clamp_min(1e-30))
        return float(round(offset, 3))

    def sources(self, groups: list[tuple[str, ...]]) -> Iterator[Fold]:
        """Linear layers whose output reaches a group's input channel by channel.

        The source's output is replaced by noise, and then by noise with a distinct factor for each
        of its channels.
        """
        left = list(groups)  # no source has been seen for these
        layers = linears(self.block)
        for source in self.order:
            if source not in layers:
                continue
            output = self.calls[source].output
            # Drawn for every source, also where nothing runs after it: the random numbers of the
            # verification, and so what is accepted, do not depend on what is matched here.
            noise = torch.randn(output.shape, generator=self.generator).to(output.device)
            later = [group for group in left if self._runs_after(group, source)]
            if not later:
                continue
            for fold in self._fed_by(source, noise, later):
                left.remove(fold.layers)
                yield fold

    def _fed_by(self, source: str, noise: Tensor, groups: list[tuple[str, ...]]) -> Iterator[Fold]:
        """Those of the groups that the source feeds. noise: in place of its output."""
        left = list(groups)
        width = noise.shape[-1]
        before, _ = self.run(outputs={source: noise})
        # In a fused gate and up projection only one half reaches the next layer linearly.
        for rows in (slice(None), slice(width // 2, None), slice(0, width // 2)):
            fitting = [group for group in left if self._fits(group, rows, width)]
            if not fitting:
                continue
            factors = noise.new_ones(width)
            factors[rows] = torch.logspace(1, 3, len(factors[rows]), base=2, device=noise.device)
            after, _ = self.run(outputs={source: noise * factors})
            for group in fitting:
                channels = _match(before.get(group[0]), after.get(group[0]), factors)
                if channels is not None:
                    left.remove(group)
                    yield Fold(group, source, channels)

    def _runs_after(self, group: tuple[str, ...], source: str) -> bool:
        if source in group:
            return False
        return self.order.index(group[0]) > self.order.index(source)

    def _fits(self, group: tuple[str, ...], rows: slice, width: int) -> bool:
        """Whether half of a source of this width, if `rows` are half, can feed the whole input."""
        if rows == slice(None):
            return True
        return 2 * self.calls[group[0]].rows.shape[-1] <= width

    def verifies(self, fold: Fold) -> bool:
        """Whether the block's output stays the same when random scales are folded here."""
        random = torch.randn(len(fold.channels), generator=self.generator).to(fold.channels.device)
        scale = fold.shared((random / 2).exp())  # about 0.4 to 2.7 within two deviations
        _, output = self.run(moved(self.block, fold, scale, self.values))
        # The input that is carried past the layers says nothing about them.
        added = self.output
        if self.output.shape == self.hidden.shape:
            added = self.output - self.hidden
        return bool((output - self.output).norm() <= TOLERANCE * added.norm())


def _may_fold(module: nn.Module) -> bool:
    """Whether it is a linear layer, or what may be a norm: one weight per channel."""
    if isinstance(module, (nn.Linear, Conv1D)):
        return True
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 1


def _single(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        return leaf.float()
    return leaf


def _match(before: _Call | None, after: _Call | None, factors: Tensor) -> Tensor | None:
    """(in,) int64, which of the factors, 2 to 8, each input channel was multiplied by.

    None unless all were multiplied by one of them. Looked for in all tokens, and then in the first
    alone: as it can attend to nothing but itself, it sees the values of an attention even where its
    queries and keys were multiplied as well, as in a fused projection.
    """
    if before is None or after is None or before.rows.shape != after.rows.shape:
        return None
    ordered, order = factors.sort()
    for tokens in (slice(None), slice(1)):
        x = before.rows[tokens]
        y = after.rows[tokens]
        # The ratio is read off where the channel is largest, and must hold for all tokens.
        largest = x.abs().argmax(0, keepdim=True)
        ratio = (y.gather(0, largest) / x.gather(0, largest))[0].nan_to_num()
        # Of the two factors around the ratio, the nearer one.
        above = torch.searchsorted(ordered, ratio).clamp(1, len(ordered) - 1)
        lower = ratio - ordered[above - 1] < ordered[above] - ratio
        nearest = torch.where(lower, above - 1, above)
        factor = ordered[nearest]
        spacing = math.log(4) / len(factors)  # between factors, relative
        # A quarter of the spacing: the nearest factor is then beyond doubt. Those that were left
        # at 1, of the other half, are no match.
        fits = ((ratio / factor - 1).abs() < min(spacing / 4, 1e-3)) & (factor > 1)
        # And the whole channel is multiplied by it, not its largest value alone.
        fits &= (y - x * factor).abs().amax(0) <= 1e-4 * y.abs().amax(0)
        if fits.all():
            return order[nearest]
    return None
