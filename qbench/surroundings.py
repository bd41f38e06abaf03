"""The state of a process that everybody shares, and what a call or an import has changed of it."""

from __future__ import annotations

import builtins
import gc
import logging
import math
import operator
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import psutil
import torch
from torch.nn.modules import module as module_hooks

from qbench.contracts import BlockInputs, BlockResult, LinearStats, Scheme
from qbench.formats import FORMATS

MODULES = (
    torch, torch.nn, torch.nn.functional, torch.linalg, torch.autograd, torch.random, torch.optim,
    torch.optim.lr_scheduler, builtins, math, np, np.linalg, np.random, os, random,
)  # fmt: skip
CLASSES = (
    torch.Tensor, torch.Generator, torch.nn.Module, torch.nn.Linear, torch.nn.Parameter,
    torch.optim.Adam, torch.optim.Optimizer, torch.autograd.Function, Scheme, LinearStats,
    BlockInputs, BlockResult, *FORMATS.values(),
)  # fmt: skip
METHODS = "qbench.methods"  # which may keep what they like to themselves
OUTSIDE = "transformers."  # whose modules remember what they were asked for
# What Python and `torch.compile` put into a class when they first need it.
NOTED = ("__annotations__", "__annotations_cache__", "___needs_generation_tag_patch")
torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first one wraps the class's own `step`


@dataclass(frozen=True)
class Surroundings:
    """One moment of the process. Each part maps what a reader calls it to its value."""

    random_state: Mapping[str, Any]
    settings: Mapping[str, Any]
    process: Mapping[str, Any]
    attributes: Mapping[str, Mapping[str, Any]]

    @classmethod
    def now(cls) -> Surroundings:
        """The present moment."""
        return cls(random_states(), settings(), process(), attributes())

    def changes(self, later: Surroundings) -> dict[str, str]:
        """A sentence for each part that is different later, by the name of the part."""
        sentences: dict[str, str] = {}
        for part in ("random_state", "settings", "process"):
            before = getattr(self, part)
            after = getattr(later, part)
            names = [name for name in before if before[name] != after[name]]
            # A random state is a long array, which tells a reader nothing.
            if part == "random_state" and names:
                sentences[part] = (
                    f"{' and '.join(names)} was used or set; take a torch.Generator with a seed"
                )
            elif names:
                texts = [f"{name} {_from_to(before[name], after[name])}" for name in names]
                sentences[part] = f"changed {'; '.join(texts)}"
        patched = _replaced(self.attributes, later.attributes)
        if patched:
            sentences["attributes"] = f"{', '.join(patched[:5])} replaced"
        return sentences


def _from_to(before: Any, after: Any) -> str:
    """Both values, or what only one has: of a mapping the keys, as variables may be private."""
    if isinstance(before, dict):
        keys = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
        return ", ".join(sorted(keys))
    if isinstance(before, list) and isinstance(after, list):
        odd = [item for item in [*before, *after] if (item in before) != (item in after)]
        if odd:
            return f"by {', '.join(map(str, odd))}"
    return f"from {before} to {after}"


def random_states() -> dict[str, Any]:
    """The states of the global random generators of torch, numpy and Python."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch's global random state": torch.get_rng_state().numpy().tobytes(),
        "numpy's global random state": (name, np.asarray(keys).tobytes(), *rest),
        "Python's global random state": random.getstate(),
    }


def settings() -> dict[str, Any]:
    """What torch and numpy are told to do, for the whole process or thread."""
    return {
        "the default dtype": torch.get_default_dtype(),
        "the default device": str(torch.get_default_device()),
        "the number of threads": torch.get_num_threads(),
        "the grad mode": torch.is_grad_enabled(),
        "the inference mode": torch.is_inference_mode_enabled(),
        "the anomaly mode": torch.is_anomaly_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn's determinism": torch.backends.cudnn.deterministic,
        "autocast": torch.is_autocast_enabled("cpu"),
        "the precision of float32 products": torch.get_float32_matmul_precision(),
        "the flushing of denormal numbers": sys.float_info.min / 4 == 0.0,
        "the modes of torch functions": torch._C._len_torch_function_stack(),
        "the modes of torch operators": torch._C._len_torch_dispatch_stack(),
        "the hooks of all modules": len(module_hooks._global_forward_hooks)
        + len(module_hooks._global_forward_pre_hooks),
        "numpy's handling of errors": np.geterr(),
    }


def process() -> dict[str, Any]:
    """What belongs to the process: folder, environment, descriptors, children, threads, signals."""
    return {
        "the working directory": _working_directory(),
        "environment variables": dict(os.environ),
        "the standard descriptors": [_descriptor(number) for number in (0, 1, 2)],
        "child processes": _descendants(),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "signal handlers": {
            number.name: str(signal.getsignal(number))
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGABRT)
        },
        "sys.path": list(sys.path),
        "the standard streams": [id(sys.stdin), id(sys.stdout), id(sys.stderr)],
        "sys.excepthook": sys.excepthook,
        "the limit of recursion": sys.getrecursionlimit(),
        "garbage collection": gc.isenabled(),
        "the mask of new files": _mask(),
        "the filters of all warnings": _filters(),
        "the level of logging": (logging.root.manager.disable, logging.root.level),
    }


def attributes() -> dict[str, dict[str, Any]]:
    """The attributes of modules and classes that everybody shares, as they are bound now."""
    owners: dict[str, dict[str, Any]] = {}
    for owner in MODULES:
        owners[owner.__name__] = vars(owner).copy()
    for kind in CLASSES:
        owners[f"class {kind.__qualname__}"] = vars(kind).copy()
    for name in list(sys.modules):
        if name.startswith(("qbench.", OUTSIDE)) and not name.startswith(METHODS):
            owners[name] = vars(sys.modules[name]).copy()
    for name, kind in _kinds_of_modules():
        owners.setdefault(name, vars(kind).copy())
    return owners


def _kinds_of_modules() -> Iterator[tuple[str, type]]:
    """The classes of which models are made, of torch, transformers and qbench, if loaded."""
    waiting: list[type] = [torch.nn.Module]
    while waiting:
        kind = waiting.pop()
        waiting += type.__subclasses__(kind)
        place = kind.__module__
        if not place.startswith(("torch.nn.", "qbench.", OUTSIDE)) or place.startswith(METHODS):
            continue
        # One that is not bound to its name was made for one object, and goes with it.
        if vars(sys.modules.get(place, builtins)).get(kind.__name__) is kind:
            name = kind.__name__ if kind in CLASSES else f"{place}.{kind.__name__}"
            yield f"class {name}", kind


def _replaced(
    before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Attributes bound to another object; new ones count in classes alone: modules import late."""
    names = []
    missing = object()  # equal to nothing, as None may be a value
    for owner, bound in before.items():
        later = after.get(owner, bound)  # a module may be imported anew
        if _is_same(bound, later):
            continue
        for name, value in bound.items():
            is_code = callable(value) or not owner.startswith(OUTSIDE)
            bound_now = later.get(name, missing)
            if is_code and bound_now is not value and not _is_compilers(bound_now, value):
                names.append(f"{owner}.{name}")
        if owner.startswith("class "):
            for name in later:
                if name not in bound and name not in NOTED:
                    names.append(f"{owner}.{name}")
    return names


def _is_compilers(function: Any, before: Any) -> bool:
    """Whether it is a wrapper by which `torch.compile` prepares torch, and calls what was before.

    That happens once, the first time that something is compiled.
    """
    if not isinstance(function, FunctionType):
        return False
    is_of_dynamo = function.__globals__.get("__name__", "").startswith("torch._dynamo.")
    return is_of_dynamo and vars(function).get("_torchdynamo_orig_callable", before) is before


def _is_same(bound: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    """Whether the same names are bound to the same objects, in the same order.

    Nearly always they are, and to ask for one name after the other takes four times as long.
    """
    return list(bound) == list(later) and all(map(operator.is_, bound.values(), later.values()))


def _descendants() -> list[int]:
    """The processes that this one has started, and those that they have started."""
    if hasattr(os, "waitid"):
        try:  # to ask for any child takes no time, and to look through all processes milliseconds
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return []
    return [child.pid for child in psutil.Process().children(recursive=True)]


def _mask() -> str:
    """Permissions that new files are not given, where the system tells without a change."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return ""
    return text.partition("Umask:")[2].partition("\n")[0].strip()


def _filters() -> list[str]:
    """The filters that hold for every module and message: libraries add some for their own."""
    return [
        f"{action} {kind}"
        for action, message, kind, module, line in warnings.filters
        if message is None and module is None and line == 0
    ]


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        return str(error)


def _descriptor(number: int) -> str:
    """The file behind a descriptor, by device and inode."""
    try:
        status = os.fstat(number)
    except OSError:
        return "closed"
    return f"{status.st_dev}:{status.st_ino}"


@contextmanager
def stay_in_own_process() -> Iterator[None]:
    """A method that forks returns twice: the copy of the checks ends here, without verdicts."""
    own = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != own:
            os._exit(0)
