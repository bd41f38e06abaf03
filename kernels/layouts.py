"""Layouts that a kernel derives from a weight: derived once, and kept as long as the weight's data.

Keyed by the storage and data pointer of the weight's first part, and valid for one stamp: what the
description says, and of all parts where they lie, as what they are read, and their versions. So a
weight that is written in place is derived again, and so is one made of views of another. A storage
lives exactly as long as some tensor has its data, whichever Python object that is; `.to()` and
`load_state_dict(assign=True)` bring another storage, and the aliases that torch.compile passes have
the same one. Tensors made in inference mode have no version, and are taken to be constant.
Nor is a write seen that leaves none, through `.data`, `.numpy()` or another library: after it, call
`forget`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.kernels.contract import Description
from qbench.kernels.description import weight_from

T = TypeVar("T")
_all: WeakSet[Layouts[Any]] = WeakSet()


def forget(weight: WeightFormat) -> None:
    """Derive a weight's layouts anew: what was written to it left no version."""
    first = next(iter(weight.to_tensors().values()))
    for layouts in _all:
        layouts.forget(first)


class Layouts(Generic[T]):
    """The layouts of one kind, each derived when a product first needs it."""

    def __init__(self, derive: Callable[[WeightFormat], T]) -> None:
        """derive: weight -> its layout, on the weight's device."""
        self._derive = derive
        # storage of the first part -> its data pointer -> (stamp, layout)
        self._known: WeakKeyDictionary[Any, dict[int, tuple[Any, T]]] = WeakKeyDictionary()
        _all.add(self)

    def forget(self, part: Tensor) -> None:
        """Keep nothing of the weights in this tensor's storage, which holds their first parts."""
        self._known.pop(part.untyped_storage(), None)

    def of(self, parts: list[Tensor], description: Description) -> T:
        """The layout of the weight that has these parts; derived anew after a write to one."""
        # inline, since this runs at each product; the number of writes stands last
        seen = [
            (
                part.data_ptr(),
                part.dtype,
                part.shape,
                part.stride(),
                0 if part.is_inference() else part._version,
            )
            for part in parts
        ]
        stamp = (seen, description)
        layouts = self._known.setdefault(parts[0].untyped_storage(), {})
        key = parts[0].data_ptr()
        known = layouts.get(key)
        if known is not None and known[0] == stamp:
            return known[1]
        layout = self._derive(weight_from(parts, description))
        layouts[key] = (stamp, layout)
        return layout
