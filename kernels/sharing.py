"""Inputs in a form that a kernel derives: kept while layers run that may read the same x.

The projections of an attention block read one x, and so do the two first of an MLP. A kernel whose
x has to be prepared keeps the last prepared form inside a scope that `share_inputs` opens around
such a module's forward pass, and only there: outside, nobody can say that a kernel of someone else
has not written to the tensor behind torch's back. Inside it is used for the same tensor object,
not written to since, on the same stream, and in the same capture of a CUDA graph or in none.
Tensors made in inference mode have no version, and are not kept. Compiled code opens no scope.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import ref

import torch
from torch import Tensor, nn

T = TypeVar("T")


class _Scope(threading.local):
    """What a thread keeps. depth: of scopes, one in another. entry: (x, stamp, prepared form)."""

    depth = 0
    entry: tuple[ref[Tensor], Any, Any] | None = None


_scope = _Scope()


def shared(x: Tensor, kind: Hashable, prepare: Callable[[], T]) -> T:
    """What `prepare()` gives for x; in a scope, what it gave before for the same x and kind."""
    if _scope.depth == 0 or x.is_inference():
        return prepare()
    stamp = (kind, x._version, ref(x.untyped_storage()), x.data_ptr(), x.shape, _place(x))
    entry = _scope.entry
    if entry is not None and entry[0]() is x and entry[1] == stamp:
        return entry[2]
    prepared = prepare()
    _scope.entry = (ref(x), stamp, prepared)
    return prepared


@contextmanager
def sharing() -> Iterator[None]:
    """A scope: inside, a prepared form of x serves until another x comes."""
    _enter()
    try:
        yield
    finally:
        _leave()


def kept() -> bool:
    """Whether a prepared form is kept at this moment."""
    return _scope.entry is not None


def share_inputs(module: nn.Module) -> None:
    """Make every forward pass of a module a scope; a module that is one already stays as it is."""
    if _open not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_open)
        module.register_forward_hook(_close, always_call=True)


def _open(module: nn.Module, arguments: Any) -> None:
    if not torch.compiler.is_compiling():
        _enter()


def _close(module: nn.Module, arguments: Any, output: Any) -> None:
    if not torch.compiler.is_compiling():
        _leave()


def _enter() -> None:
    _scope.depth += 1
    _scope.entry = None


def _leave() -> None:
    _scope.depth = max(0, _scope.depth - 1)
    _scope.entry = None


def _place(x: Tensor) -> tuple[int, int] | None:
    """The stream that products with x are launched on, and the capture of a graph under way."""
    if not x.is_cuda:
        return None
    stream: int = torch._C._cuda_getCurrentRawStream(x.get_device())
    if not torch.cuda.is_current_stream_capturing():
        return stream, 0
    from cuda.bindings import driver

    _, _, capture, *_ = driver.cuStreamGetCaptureInfo(driver.CUstream(stream))
    return stream, int(capture)
