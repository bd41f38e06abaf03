"""What a kernel derives from a weight, made once and kept as long as the weight.

By the storage of the weight's first part and its address therein. A storage lives exactly as long
as some tensor has the data, whichever Python object that is: `.to()` and
`load_state_dict(assign=True)` bring another one, and torch.compile may pass aliases of the same.
What was written in place is told by the tensors' versions; inference tensors have none and are
taken to be constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from torch import Tensor

from qbench.contracts import WeightFormat
from qbench.formats import from_tensors

T = TypeVar("T")


class Layouts(Generic[T]):
    """Derived layouts of one kind."""

    def __init__(self, derive: Callable[[WeightFormat], T]) -> None:
        self._derive = derive
        self._known: WeakKeyDictionary[Any, dict[int, tuple[Any, T]]] = WeakKeyDictionary()

    def of(self, parts: list[Tensor], stated: Mapping[str, Any]) -> T:
        """That of the weight that `parts` are, derived again where one was written to."""
        stamp = (
            [(part.data_ptr(), 0 if part.is_inference() else part._version) for part in parts],
            stated["spec"],
        )
        found = self._known.setdefault(parts[0].untyped_storage(), {})
        key = parts[0].data_ptr()
        if key not in found or found[key][0] != stamp:
            tensors = dict(zip(stated["parts"], parts, strict=True))
            found[key] = (
                stamp,
                self._derive(from_tensors(stated["format"], tensors, stated["spec"])),
            )
        return found[key][1]
