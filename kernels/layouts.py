"""Layouts that a kernel derives from a weight: derived once, and kept as long as the weight's data.

The key is the storage and data pointer of the weight's first part. The layout is valid as long as
its stamp: the description, and for every part its storage, address, dtype, shape, strides and
version. So it is derived again where a weight is written in place, has another part, or is made of
other views of the same memory. A storage lives as long as any tensor with its data, and stands for
itself: the address of one that was freed may be that of another now. `.to()` and
`load_state_dict(assign=True)` make another storage; the aliases that torch.compile passes have the
same one.

Some writes are not noticed: tensors made in inference mode have no version, and writes through
`.data`, `.numpy()` or another library do not change it. Call `forget` after such a write.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary, WeakSet, ref

from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.kernels.contract import Description
from qbench.kernels.description import weight_from

T = TypeVar("T")
_all: WeakSet[Layouts[Any]] = WeakSet()


def forget(weight: WeightFormat) -> None:
    """Drop a weight's layouts, after a write that did not change the version of its parts."""
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
        """Drop the layouts of all weights whose first part is in this tensor's storage."""
        self._known.pop(part.untyped_storage(), None)

    def of(self, parts: list[Tensor], description: Description) -> T:
        """The layout of the weight that has these parts; derived anew after a write to one."""
        # Written out here, since it runs at each product. The version is the number of writes. A
        # reference to a storage equals another of the same one alone, also after its end.
        seen = [
            (
                ref(part.untyped_storage()),
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
