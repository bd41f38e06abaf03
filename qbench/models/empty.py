"""Models built without weights: parameters never have memory, buffers are computed as ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_M = TypeVar("_M", bound=nn.Module)


def built_empty(build: Callable[[], _M]) -> _M:
    """The model that `build` makes, with its parameters on the meta device and its buffers not."""
    with _empty_weights(), _EmptyOnMeta():
        model = build()
    if any(buffer.is_meta for buffer in model.buffers()):  # one that was begun by torch.empty
        with _empty_weights():
            return build()
    return model


@contextmanager
def _empty_weights() -> Iterator[None]:
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        yield


class _EmptyOnMeta(TorchFunctionMode):
    """torch.empty, by which layers begin, gives nothing but a shape.

    accelerate moves a parameter once it is registered: until then a layer of a large model takes a
    gigabyte, and as much again until Python looks for cycles.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.empty and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)
