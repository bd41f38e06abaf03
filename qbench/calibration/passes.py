"""The walk through one block where memory does not suffice for all streams at once.

In `qbench.calibration.walk.lock_step` all streams wait inside the block, with all tensors that the
block keeps there. Here one stream at a time runs up to the next layer that is not visited yet, and
starts again after the visit. Layers, order and statistics are the same, with about three times the
products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from qbench.calibration.input_statistics import Sums, no_statistics
from qbench.calibration.spool import keep
from qbench.contracts import LinearStats

Run = Callable[[Any], Tensor]


class _Stopped(Exception):
    """A stream has reached a layer that has to be visited first."""


@dataclass
class _Pass:
    """What one pass over the streams has seen.

    unvisited: the layers at which streams stop. reached: for each stream that came to one, this
    first layer, and those that were then called with the very same input. sums: over the inputs, by
    such a first layer. seen: the input at which the present stream came to its first layer.
    """

    unvisited: set[Any]
    reached: list[list[Any]] = field(default_factory=list)
    sums: dict[Any, Sums] = field(default_factory=dict)
    seen: Tensor | None = None

    def look(self, layer: Any, args: tuple[Any, ...]) -> None:
        """Take the input of a layer; _Stopped where the layer before it has to be visited first."""
        if layer not in self.unvisited:
            return
        x = args[0]
        if self.seen is None:
            self.seen = x
            self.reached.append([layer])
            if layer not in self.sums:
                self.sums[layer] = Sums(x)
            self.sums[layer].add(x)
            return
        if x is not self.seen:
            raise _Stopped
        # What was called in between still has its own weights, and nothing of it is kept.
        self.reached[-1].append(layer)

    def next_layers(self, order: Sequence[Any]) -> list[Any]:
        """The layers to be visited now, in this order; they share the statistics of the first."""
        first, *others = sorted(self.sums, key=order.index)
        end = order.index(others[0]) if others else len(order)
        shared = []
        # What all streams that came to the first layer called with its input, in the same order.
        for layer, *same in zip(*(own for own in self.reached if own[0] is first), strict=False):
            if any(other is not layer for other in same) or order.index(layer) >= end:
                break
            shared.append(layer)
        return shared


def in_passes(
    streams: Sequence[Any],
    run: Run,
    names: Mapping[Any, str],
    visit: Callable[[str, Any, LinearStats], None],
) -> list[Tensor]:
    """The block's outputs by stream, once all of its layers are visited, as in `lock_step`.

    run: a stream's pass through the block. names: the layers' full names. visit: as in the walk.
    """
    order = list(names)
    unvisited = set(order)
    while True:
        passed, outputs = _passed(streams, run, order, unvisited)
        if not passed.sums:
            break
        layers = passed.next_layers(order)
        stats = passed.sums[layers[0]].statistics(names[layers[0]])
        for layer in layers:
            visit(names[layer], layer, stats)
            unvisited.remove(layer)
    for layer in order:
        if layer in unvisited:
            visit(names[layer], layer, no_statistics(layer))
    return outputs


def _passed(
    streams: Sequence[Any], run: Run, order: Sequence[Any], unvisited: set[Any]
) -> tuple[_Pass, list[Tensor]]:
    """One pass, and the outputs of the streams that did not stop at a layer."""
    passed = _Pass(unvisited)
    outputs = []
    hooks = [layer.register_forward_pre_hook(passed.look) for layer in order]
    try:
        for stream in streams:
            passed.seen = None
            try:
                output = run(stream)
            except _Stopped:
                continue
            if not passed.sums:  # else there will be another pass
                outputs.append(keep(output))
    finally:
        for hook in hooks:
            hook.remove()
    return passed, outputs
