"""Blocks of a model that are in memory only while they are needed: their weights stay in the files.

A paged block has its parameters on the meta device. `resident` brings them in for as long as it
lasts; a call of the block does so by itself, so that a paged model computes whatever the model that
is whole in memory computes, reading its files once in every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

Read = Callable[[torch.device], dict[str, Tensor]]


@dataclass
class _Page:
    """A block's tensors, wherever they are.

    read: gives them by their names in the block, on a device, in memory that nobody else has.
    leaving: called before they are given up. rounding: what parameters are rounded to. users: how
    many need them at present, of which `calls` are calls of the block. away: the empty parameters
    that they stand in for.
    """

    read: Read
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    leaving: Callable[[], None] | None = None
    rounding: torch.dtype | None = None
    users: int = 0
    calls: int = 0
    away: dict[str, Any] = field(default_factory=dict)


_PAGES: WeakKeyDictionary[nn.Module, _Page] = WeakKeyDictionary()


def page_out(block: nn.Module, read: Read) -> None:
    """Let a block whose parameters are on the meta device be paged."""
    _PAGES[block] = _Page(read)
    block.register_forward_pre_hook(_before_call)
    block.register_forward_hook(_after_call, always_call=True)


def is_paged(model: nn.Module) -> bool:
    """Whether blocks of a model are only in memory while they are needed."""
    return any(module in _PAGES for module in model.modules())


def before_leaving(block: nn.Module, leaving: Callable[[], None]) -> None:
    """Have `leaving` called each time before the tensors of a paged block are given up."""
    _PAGES[block].leaving = leaving


@contextmanager
def resident(module: nn.Module) -> Iterator[None]:
    """Keep the parameters of the paged blocks of a module in memory, of itself where it is one.

    Changes are lost in the end, if `leaving` does nothing. Nothing is done where none is paged.
    """
    with ExitStack() as stack:
        for block in module.modules():
            if block in _PAGES:
                stack.enter_context(_resident(block, _PAGES[block]))
        yield


@contextmanager
def _resident(block: nn.Module, page: _Page) -> Iterator[None]:
    _enter(block, page)
    whole = False
    try:
        yield
        whole = True
    finally:
        _leave(block, page, whole)


def on_device(model: nn.Module, device: str | torch.device) -> nn.Module:
    """Move a model, of which paged blocks follow when they are needed."""
    paged = [module for module in model.modules() if module in _PAGES]
    if not paged:
        return model.to(device)
    for block in paged:
        _PAGES[block].device = torch.device(device)
    for module in model.modules():
        for owned in (module._parameters, module._buffers):
            for name, tensor in owned.items():
                if tensor is not None and not tensor.is_meta:
                    owned[name] = _moved(tensor, device)
    return model


def round_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """Round the parameters of a model to the numbers of another dtype, and keep their own."""
    for module in model.modules():
        if module in _PAGES:
            _PAGES[module].rounding = dtype
    for parameter in model.parameters():
        if not parameter.is_meta:
            parameter.data = _rounded(parameter.data, dtype)


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype).to(values.dtype)


def _moved(tensor: Any, device: str | torch.device) -> Any:
    if isinstance(tensor, nn.Parameter):
        tensor.data = tensor.data.to(device)  # the same parameter, which others may be tied to
        return tensor
    return tensor.to(device)


def _enter(block: nn.Module, page: _Page) -> None:
    if page.users == 0:
        for name, tensor in page.read(page.device).items():
            owner, _, leaf = name.rpartition(".")
            owned = _owned(block.get_submodule(owner), leaf)
            empty = owned[leaf]
            page.away[name] = empty
            if isinstance(empty, nn.Parameter):
                values = tensor if page.rounding is None else _rounded(tensor, page.rounding)
                owned[leaf] = nn.Parameter(values, requires_grad=empty.requires_grad)
            else:
                owned[leaf] = tensor
    page.users += 1


def _leave(block: nn.Module, page: _Page, whole: bool = True) -> None:
    """whole: whether nothing has gone wrong since."""
    try:
        if page.users == 1 and whole and page.leaving is not None:
            page.leaving()
    finally:
        page.users -= 1
        if page.users == 0:
            for name, empty in page.away.items():
                owner, _, leaf = name.rpartition(".")
                _owned(block.get_submodule(owner), leaf)[leaf] = empty
            page.away.clear()


def _owned(module: nn.Module, leaf: str) -> dict[str, Any]:
    """Where a module keeps the parameter or buffer of this name."""
    return module._parameters if leaf in module._parameters else module._buffers


def _before_call(block: nn.Module, args: Any) -> None:
    # A block whose forward is another's for the moment is passed over, and needs no weights.
    if "forward" not in vars(block):
        page = _PAGES[block]
        _enter(block, page)
        page.calls += 1


def _after_call(block: nn.Module, args: Any, output: Any) -> None:
    page = _PAGES[block]
    if page.calls:  # else it was passed over, or could not be read
        page.calls -= 1
        _leave(block, page)
