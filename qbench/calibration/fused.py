"""Row-wise functions of large tensors: slice by slice on a CPU, compiled to one kernel on a GPU.

Ten element-wise operations read and write a weight of 59 million numbers ten times. On a CPU slices
that stay in its cache avoid that, on a GPU a compiled function, which does it once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

SLICE = 1 << 18  # weights at a time on a CPU: the temporaries of a slice stay in its cache
RowWise = Callable[..., tuple[Tensor, ...]]
_plain: set[RowWise] = set()  # functions that could not be compiled


def over_rows(function: RowWise, *tensors: Tensor, **constants: Any) -> tuple[Tensor, ...]:
    """function(*tensors, **constants), where every row of its results comes of the same row alone.

    tensors: (rows, ...) each, the first one the largest. function: must not change them. Where
    torch.compile does not work on a GPU, the function runs as it is, after a warning.
    """
    first = tensors[0]
    if first.device.type == "cpu":
        return _by_slices(function, tensors, constants)
    if first.device.type == "cuda" and function not in _plain:
        try:
            return _compiled(function)(*tensors, **constants)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ImportError, OSError) as error:
            _plain.add(function)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(
                f"{function.__name__} is not compiled, and slower: {reason}", stacklevel=2
            )
    return function(*tensors, **constants)


def _by_slices(
    function: RowWise, tensors: tuple[Tensor, ...], constants: dict[str, Any]
) -> tuple[Tensor, ...]:
    rows = len(tensors[0])
    step = max(1, SLICE // tensors[0].shape[1])
    results: list[Tensor] = []
    for start in range(0, rows, step):
        part = slice(start, start + step)
        values = function(*(tensor[part] for tensor in tensors), **constants)
        if not results:
            if step >= rows:
                return values
            results = [value.new_empty(rows, *value.shape[1:]) for value in values]
        for result, value in zip(results, values, strict=True):
            result[part] = value
    return tuple(results)


@cache
def _compiled(function: RowWise) -> RowWise:
    """Compiled once for each number of columns; the number of rows may vary."""
    made: RowWise = torch.compile(function, dynamic=None)
    return made
