"""Many small operations on a GPU as one launch: recorded once for shapes, and replayed.

A step of GPTQ or of coordinate descent is ten operations on one column, each of a microsecond, and
launching one from Python takes several. A CUDA graph launches a thousand of them at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

InPlace = Callable[..., None]
Kind = tuple[torch.Size, torch.dtype, torch.device]


def in_place(
    function: InPlace, read: Sequence[Tensor], changed: Sequence[Tensor], *constants: Any
) -> None:
    """function(*read, *changed, *constants), which changes the tensors `changed` and nothing else.

    On a GPU, the first call with these shapes records the operations, and later ones replay them,
    on copies of the tensors. So they must not depend on values, and constants must be hashable.
    """
    tensors = (*read, *changed)
    if tensors[0].device.type != "cuda":
        function(*tensors, *constants)
        return
    kinds = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors)
    buffers, replay = _recorded(function, kinds, constants)
    replay_on(buffers, replay, read, changed)


def replay_on(
    buffers: list[Tensor],
    replay: Callable[[], None],
    read: Sequence[Tensor],
    changed: Sequence[Tensor],
) -> None:
    """Copy tensors into the buffers, replay, and copy back what has changed."""
    for buffer, tensor in zip(buffers, (*read, *changed), strict=True):
        buffer.copy_(tensor)
    replay()
    for buffer, tensor in zip(buffers[len(read) :], changed, strict=True):
        tensor.copy_(buffer)


@lru_cache(maxsize=12)  # a model has few shapes of layers
def _recorded(
    function: InPlace, kinds: tuple[Kind, ...], constants: tuple[Any, ...]
) -> tuple[list[Tensor], Callable[[], None]]:
    """Tensors of these shapes, and what runs the function on them: a CUDA graph."""
    buffers = [torch.ones(shape, dtype=dtype, device=device) for shape, dtype, device in kinds]
    with torch.cuda.device(buffers[0].device):
        # What is loaded or allocated at a first call cannot be recorded.
        function(*buffers, *constants)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function(*buffers, *constants)
    return buffers, graph.replay
