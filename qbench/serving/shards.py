"""What one rank of a tensor-parallel server holds of a quantized weight, cut from what is stored.

A rank has some of a weight's outputs, or some of its inputs. Outputs are rows of every part. Inputs
are cut in steps: codes and planes have a step for each input, scales one for each group. Steps of
some bits lie in a stream of bytes, and a cut between two bytes' worth of them is packed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.errors import ConfigError
from qbench.formats import Binary, Uniform, from_tensors
from qbench.formats.packing import pack, packed_length, unpack
from qbench.formats.stepped import Numbers, Stepped


class Axes(NamedTuple):
    """How a part follows its weight.

    outputs: the axis of its rows. inputs: the axis that follows the inputs, the last, or None where
    a row has one number. by_group: whether a step is a group and not an input. width: bits of a
    step in a stream of bytes; None where a step is an element, and what follows `inputs` is whole.
    """

    outputs: int = 0
    inputs: int | None = 1
    by_group: bool = True
    width: int | None = None


@dataclass(frozen=True)
class Inputs:
    """A run of the inputs of a weight: those of a rank, or all.

    of: of the whole weight, whose groups have `group_size`. first, count: of the run.
    """

    of: int
    group_size: int
    first: int
    count: int

    @property
    def group(self) -> int:
        """The size of a group inside the run: the whole run, where it lies within one group."""
        return min(self.group_size, self.count)

    @property
    def groups(self) -> int:
        """How many groups the run has."""
        return self.count // self.group

    def steps(self, axes: Axes) -> tuple[int, int]:
        """The first step of a part, and how many there are."""
        if axes.by_group:
            return self.first // self.group_size, self.groups
        return self.first, self.count


def inputs_of(layer: str, of: int, group_size: int, rank: int, ranks: int) -> Inputs:
    """The inputs of one rank of several, which divide them equally.

    ConfigError where a rank would begin or end inside a group that it shares with others in part.
    """
    count = of // ranks
    if count * ranks != of or (count % group_size and group_size % count):
        raise ConfigError(
            f"{layer} has {of} inputs in groups of {group_size}, which {ranks} ranks cannot share; "
            "serve it with fewer of them (--tensor-parallel-size)"
        )
    return Inputs(of, group_size, rank * count, count)


def axes_of(weight: WeightFormat) -> dict[str, Axes]:
    """The axes of every part of a `binary` or `uniform` weight."""
    if isinstance(weight, Binary):
        codes = {"planes": Axes(1, 2, by_group=False, width=1)}
        numbers = _numbers("alpha", weight.stored_alpha) | _numbers("shift", weight.stored_shift)
        return codes | numbers
    assert isinstance(weight, Uniform)
    axes = {"codes": Axes(by_group=False, width=weight.bits)}
    axes |= _numbers("scale", weight.stored_scale)
    zero = weight.stored_zero
    if isinstance(zero, Tensor) and zero.dtype == torch.uint8:
        return axes | {"zero_point": Axes(width=weight.bits)}
    return axes | _numbers("zero_point", zero)


def _numbers(name: str, numbers: Numbers | None) -> dict[str, Axes]:
    if numbers is None:
        return {}
    if not isinstance(numbers, Stepped):
        return {name: Axes()}
    # alpha and shift share the span of alpha
    span = "alpha_span" if name == "shift" else f"{name}_span"
    return {f"{name}_codes": Axes(width=sum(numbers.widths)), span: Axes(inputs=None)}


def cut(part: Tensor, axes: Axes, inputs: Inputs) -> Tensor:
    """Of a part of the whole weight, what belongs to a run of its inputs."""
    if axes.inputs is None:
        return part
    first, count = inputs.steps(axes)
    if axes.width is None:
        return part.narrow(axes.inputs, first, count)
    start, length = first * axes.width, count * axes.width
    whole = 8 * part.shape[-1]
    if start % 8 == 0 and (length % 8 == 0 or start + length > whole - 8):
        return part.narrow(axes.inputs, start // 8, packed_length(length, 1))
    return pack(unpack(part, 1, whole)[..., start : start + length], 1)


def empty_weight(whole: WeightFormat, out: int, inputs: Inputs) -> dict[str, Tensor]:
    """Tensors without values for `out` rows and a run of inputs of a weight, by part.

    whole: any weight of that kind, possibly on the meta device.
    """
    axes = axes_of(whole)
    tensors = {}
    for name, part in whole.to_tensors().items():
        shape = list(part.shape)
        shape[axes[name].outputs] = out
        along = axes[name].inputs
        if along is not None:
            _, steps = inputs.steps(axes[name])
            width = axes[name].width
            shape[along] = steps if width is None else packed_length(steps * width, 1)
        tensors[name] = torch.empty(shape, dtype=part.dtype)
    return tensors


def local_weight(
    whole: WeightFormat, tensors: Mapping[str, Tensor], inputs: Inputs
) -> WeightFormat:
    """The weight of a rank from its tensors; StoreError where they do not fit."""
    sizes: dict[str, Any] = {"in_features": inputs.count, "group_size": inputs.group}
    return from_tensors(whole.format, tensors, whole.spec() | sizes)
