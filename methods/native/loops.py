"""Loops over columns, grids and cells in C (`loops.h`), for float32 tensors on a processor.

A column of error feedback is ten small operations, and a grid is tried in six passes over the
weights: torch reads and writes its numbers for each, and these functions keep them in registers.
Where the library is missing `here` says no, and what calls them computes the same in torch.
Shapes are those of the functions that are named. RuntimeError where one is another, or where what
is changed in place is not contiguous: C would read and write beyond it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qbench import shared_library

COLUMNS = 1024  # of a block at most, by LOOPS_COLUMNS
LEVELS = 64  # by LOOPS_LEVELS
UNKNOWNS = 8  # by LOOPS_UNKNOWNS
_POINTER = ctypes.c_void_p
_FLOAT = ctypes.c_float
_I64 = ctypes.c_int64
_FUNCTIONS: shared_library.Functions = {
    "round_block": (ctypes.c_int, (_I64, _I64, *(_POINTER,) * 4, _FLOAT, *(_POINTER,) * 3)),
    "feed_back_block": (ctypes.c_int, (_I64, _I64, _I64, *(_POINTER,) * 5)),
    "grid_error": (ctypes.c_int, (_I64, _I64, *(_POINTER,) * 4, _FLOAT, _POINTER)),
    "fit_sums": (ctypes.c_int, (_I64, _I64, *(_POINTER,) * 4, _FLOAT, _POINTER, _POINTER)),
    "cells": (ctypes.c_int, (_I64, _I64, _I64, *(_POINTER,) * 6)),
    "ranked": (ctypes.c_int, (_I64, _I64, _I64, *(_POINTER,) * 4)),
    "least_squares": (ctypes.c_int, (_I64, _I64, _I64, *(_POINTER,) * 4)),
}


def here(*tensors: Tensor | None, dtype: torch.dtype = torch.float32) -> bool:
    """Whether these loops serve the tensors: on a processor, of dtype, where the library is.

    Not what torch.compile makes a kernel of, nor negative views, whose memory has another sign.
    """
    if torch.compiler.is_compiling():
        return False
    for tensor in tensors:
        if tensor is None:
            continue
        if tensor.device.type != "cpu" or tensor.dtype != dtype or tensor.is_neg():
            return False
    return unavailable() is None


@cache
def unavailable() -> str | None:
    """Why the loops cannot be used in this process, or None."""
    return shared_library.why_not(_path())


def _path() -> Path | None:
    return shared_library.built(Path(__file__).parent, ("_loops",))


@cache
def _library() -> Any:
    """The C functions, typed; there where `unavailable` has no reason."""
    path = _path()
    assert path is not None
    return shared_library.typed(path, "loops_", _FUNCTIONS)


def round_block(
    U: Tensor,
    s: Tensor,
    inverse: Tensor,
    z: Tensor,
    W: Tensor,
    codes: Tensor,
    errors: Tensor,
    top: int,
) -> None:
    """`error_feedback.round_block`, of at most `COLUMNS` columns; W, codes, errors contiguous."""
    read = [_of_shape(U, len(W), len(W)), *(_of_shape(x, *W.shape) for x in (s, inverse, z))]
    _call("round_block", *W.shape, *read, top, W, codes, errors)


def feed_back_block(U: Tensor, tables: Tensor, group_of: Tensor, W: Tensor, errors: Tensor) -> None:
    """`curvature.feed_back_block`, of at most `COLUMNS` columns and `LEVELS` levels.

    W and errors contiguous.
    """
    columns, out = W.shape
    groups, levels, _ = tables.shape
    read = [
        _of_shape(U, columns, columns),
        _of_shape(tables, groups, levels, out),
        _of_shape(group_of, columns),
    ]
    _call("feed_back_block", columns, out, levels, *read, W, errors)


def grid_error(W: Tensor, s: Tensor, z: Tensor, bits: int, importance: Tensor | None) -> Tensor:
    """(rows,) float32: `grids.grid_error` with norm 2."""
    error = W.new_empty(len(W))
    _call("grid_error", *W.shape, *_searched(W, importance, s, z), 2**bits - 1, error)
    return error


def fit_sums(
    W: Tensor, s: Tensor, z: Tensor, bits: int, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The two sums of `grids.fitted_scale`, (rows,) each."""
    with_w = W.new_empty(len(W))
    with_d = W.new_empty(len(W))
    _call("fit_sums", *W.shape, *_searched(W, importance, s, z), 2**bits - 1, with_w, with_d)
    return with_w, with_d


def cells(
    sorted_weights: Tensor, middle: Tensor, mass: Tensor | None, prefix: Tensor
) -> tuple[Tensor, Tensor]:
    """What the weights of cells count together, and their sum, (rows, L) float64 each.

    sorted_weights (rows, g) float32, ascending; middle (rows, L - 1) float32, between the levels;
    mass and prefix (rows, g + 1) float64, sums from 0; mass None: each weight counts 1.
    """
    rows, group = sorted_weights.shape
    levels = middle.shape[1] + 1
    count = torch.empty(rows, levels, dtype=torch.float64)
    total = torch.empty_like(count)
    _call("cells", rows, group, levels, sorted_weights, middle, mass, prefix, count, total)
    return count, total


def ranked(W: Tensor, middle: Tensor, order: Tensor) -> Tensor:
    """(rows, n) int64: `levels.ranked`; y is W (rows, n) float32, order (rows, L) int64."""
    index = torch.empty(W.shape, dtype=torch.int64)
    rows, levels = order.shape
    read = [_of_shape(W, rows, W.shape[1]), _of_shape(middle, rows, levels - 1), order.contiguous()]
    _call("ranked", *W.shape, levels, *read, index)
    return index


def least_squares(count: Tensor, total: Tensor, columns: Tensor) -> Tensor:
    """Of `alternating.least_squares` the solution (rows, k), all float64.

    count, total (rows, L); columns (L, k), at most `UNKNOWNS`.
    """
    theta = count.new_empty(len(count), columns.shape[1])
    read = [columns.contiguous(), count.contiguous(), _of_shape(total, *count.shape)]
    _call("least_squares", *count.shape, columns.shape[1], *read, theta)
    return theta


def _searched(
    W: Tensor, importance: Tensor | None, s: Tensor, z: Tensor
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    counts = None if importance is None else _of_shape(importance, *W.shape)
    return W.contiguous(), counts, _of_shape(s, len(W)), _of_shape(z, len(W))


def _of_shape(x: Tensor, *shape: int) -> Tensor:
    """Contiguous; RuntimeError where x has another shape, which C would read beyond."""
    return x.expand(shape).contiguous()


def _call(name: str, *arguments: Any) -> None:
    """Tensors by the addresses of their numbers, which must be contiguous; None by NULL."""
    passed = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            if not argument.is_contiguous():  # C would read other numbers
                raise RuntimeError(f"{name}: an argument {tuple(argument.shape)} is not contiguous")
            argument = argument.data_ptr()
        passed.append(argument)
    status = getattr(_library(), f"loops_{name}")(*passed)
    if status != 0:
        raise RuntimeError(f"{name}: sizes that it was not made for")
