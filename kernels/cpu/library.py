"""The C library of the CPU kernels: where the build left it, its functions with their types.

`kernels/cpu/bcq.h` says what each function does. A status that is not zero is a `QbenchError`.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from qbench import shared_library
from qbench.errors import ConfigError, QbenchError

ISAS = ("portable", "avx2", "avx512")  # by their numbers in enum bcq_isa
ISA_VARIABLE = "QBENCH_ISA"
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # by enum bcq_type
NO_TYPE = 3
_FAILURES = {
    1: "its arguments do not fit each other",
    2: "memory is short",
    3: "the processor lacks the instructions",
}
_POINTER = ctypes.c_void_p
_I32 = ctypes.c_int32
_I64 = ctypes.c_int64
# name: (type of the result, types of the arguments), as in bcq.h
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "size": (_I64, (_POINTER,)),
    "pack": (ctypes.c_int, (_POINTER,) * 5),
    "product": (
        ctypes.c_int,
        (_POINTER, _POINTER, _POINTER, _I32, _I64, _POINTER, _POINTER, _I32, _I32),
    ),
    "dequantize": (ctypes.c_int, (_POINTER, _POINTER, _I64, _I64, _POINTER, _I32, _I32)),
    "read": (ctypes.c_uint64, (_POINTER, _I64, _I32, _I32)),
    "prefer_huge_pages": (None, (_POINTER, _I64)),
    "best_isa": (ctypes.c_int, ()),
    "has_threads": (ctypes.c_int, ()),
}


class Weight(ctypes.Structure):
    """`bcq_weight`: rows (out), columns (in), group, bits, whether uniform, types of the scales.

    isa: index in ISAS of the instruction set whose layout it is.
    """

    _fields_ = (
        ("rows", _I64),
        ("columns", _I64),
        ("group", _I64),
        ("bits", _I32),
        ("uniform", _I32),
        ("scale_type", _I32),
        ("shift_type", _I32),
        ("isa", _I32),
    )


def library_path() -> Path | None:
    """The library that the package's build left here, or None.

    One with threads is preferred to one without, which is all there is where the compiler has no
    OpenMP.
    """
    return shared_library.built(Path(__file__).parent, ("_bcq", "_bcq_serial"))


@cache
def unavailable() -> str | None:
    """Why the kernels cannot be used in this process, or None."""
    return shared_library.why_not(library_path())


@cache
def library() -> Any:
    """The C functions, typed. QbenchError where there are none."""
    path = library_path()
    reason = unavailable()
    if path is None or reason is not None:
        raise QbenchError(f"the CPU kernels cannot be used: {reason}")
    return shared_library.typed(path, "bcq_", _FUNCTIONS)


@cache
def best_isa() -> int:
    """Index in ISAS of the best instruction set that this processor has."""
    return library().bcq_best_isa()


def chosen_isa() -> int:
    """Index in ISAS of what new layouts are made for: QBENCH_ISA, such as `avx2`, or the best.

    ConfigError where QBENCH_ISA names another, or one that this processor lacks.
    """
    name = os.environ.get(ISA_VARIABLE)
    if not name:
        return best_isa()
    here = ISAS[: best_isa() + 1]
    if name not in here:
        raise ConfigError(
            f"{ISA_VARIABLE}={name!r} is not an instruction set of this processor; "
            f"give one of {', '.join(here)}, or unset it for {here[-1]}"
        )
    return here.index(name)


def check(status: int) -> None:
    """QbenchError for a status of the C functions that is not zero."""
    if status:
        raise QbenchError(f"the CPU kernel failed: {_FAILURES.get(status, status)}")
