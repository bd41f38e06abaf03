"""Name -> kernel: finds kernels, chooses the one for a product, and counts what they computed.

Kernels come from three places:

    this folder       a module that defines a `Kernel`, or a tuple `KERNELS`, at its top level; or a
                      package whose `__init__` does. Modules inside a package are not searched.
    installed         entry points of the group `qbench.kernels`: a `Kernel`, a tuple of kernels, or
                      a module like those above
    plug-in files     a module like those above, by `load_plugin`

The search happens once, when a kernel is first asked for. A module that needs a package that may
be absent, such as triton, imports it inside the function that launches the kernel. A module that
raises is kept with the reason (`broken_kernels`), and all others work.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any

from qbench.errors import ConfigError, require_plain_name, unknown_name
from qbench.kernels.contract import Kernel, Request
from qbench.plugin_file import import_plugin_file

GROUP = "qbench.kernels"  # of entry points, and the package that is searched

_lock = RLock()
_known: dict[str, Kernel] | None = None  # None: nobody has looked yet
_origins: dict[str, str] = {}  # name of a kernel -> plug-in file it came from
_broken: dict[str, str] = {}
_served: Counter[str] = Counter()
_named: ContextVar[str | None] = ContextVar("kernel", default=None)


def all_kernels() -> dict[str, Kernel]:
    """All kernels that can be imported, by name: the highest priority first, equals by name."""
    known = _discovered()
    with _lock:
        ranked = sorted(known.values(), key=lambda kernel: (-kernel.priority, kernel.name))
    return {kernel.name: kernel for kernel in ranked}


def broken_kernels() -> dict[str, str]:
    """Modules and entry points that cannot be used, by name, with the reason, one sentence."""
    _discovered()
    return dict(_broken)


def get_kernel(name: str) -> Kernel:
    """The kernel of this name; ConfigError with the nearest name where there is none."""
    known = _discovered()
    if name not in known:
        raise ConfigError(unknown_name("kernel", name, known))
    return known[name]


def register(kernel: Kernel) -> None:
    """Add a kernel. ConfigError where its name is taken, or is not a plain name."""
    known = _discovered()
    require_plain_name("a kernel", kernel.name)
    if kernel.name in known:
        raise ConfigError(
            f"kernel {kernel.name!r} is registered twice; give one of them another name"
        )
    known[kernel.name] = kernel
    choose.cache_clear()


def load_plugin(path: Path) -> list[str]:
    """Import a Python file and register the kernels that it defines; returns their names.

    The same file may be loaded again. ConfigError, naming the file, where it is absent, cannot be
    imported, defines no kernel, or defines one whose name exists.
    """
    names = register_module(import_plugin_file(path), str(path.resolve()))
    if not names:
        raise ConfigError(
            f"plug-in {str(path)!r} defines no kernel: a module-level `Kernel` of "
            f"qbench.kernels.contract"
        )
    return names


def plugin_files() -> list[str]:
    """The plug-in files that were loaded, so that another process can load them, too."""
    with _lock:
        return sorted(set(_origins.values()))


def register_module(module: ModuleType, origin: str) -> list[str]:
    """Register the kernels of a module that has been imported already; returns their names.

    origin: the file that it came from; kernels of the same origin are replaced. ConfigError where
    another origin has taken the name of one, or where it is not a plain name.
    """
    kernels = kernels_in(module)
    known = _discovered()
    for kernel in kernels:
        require_plain_name(f"a kernel of plug-in {origin!r}", kernel.name)
        if kernel.name in known and _origins.get(kernel.name) != origin:
            raise ConfigError(
                f"plug-in {origin!r} defines kernel {kernel.name!r}, which exists; "
                f"choose another name"
            )
    with _lock:
        for kernel in kernels:
            known[kernel.name] = kernel
            _origins[kernel.name] = origin
    choose.cache_clear()
    return [kernel.name for kernel in kernels]


def kernels_in(value: Any) -> list[Kernel]:
    """The kernels of a module, of a tuple or list, or the one that `value` itself is."""
    if isinstance(value, Kernel):
        return [value]
    if isinstance(value, tuple | list):
        return [kernel for kernel in value if isinstance(kernel, Kernel)]
    kernels: list[Kernel] = []
    for member in (*getattr(value, "KERNELS", ()), *vars(value).values()):
        if isinstance(member, Kernel) and not any(member is kernel for kernel in kernels):
            kernels.append(member)
    return kernels


@lru_cache(maxsize=4096)
def choose(request: Request, name: str | None = None) -> Kernel:
    """The kernel of that name; without one, the automatic kernel of highest priority that serves.

    ConfigError where no kernel has that name, where that kernel cannot serve, or where none can.
    """
    if name is None:
        for kernel in all_kernels().values():
            if kernel.automatic and kernel.refusal(request) is None:
                return kernel
        raise ConfigError(f"no kernel serves {request}; `qbench list kernels` says what each can")
    kernel = get_kernel(name)
    reason = kernel.refusal(request)
    if reason is not None:
        raise ConfigError(
            f"kernel {name!r} cannot compute this: {reason}; `qbench list kernels` says what each "
            f"can"
        )
    return kernel


@contextmanager
def using(name: str | None) -> Iterator[None]:
    """A context in which the kernel of this name computes all products, or raises ConfigError.

    None is the automatic choice, also inside another `using`.
    """
    if name is not None:
        get_kernel(name)
    token = _named.set(name)
    try:
        yield
    finally:
        _named.reset(token)


def named() -> str | None:
    """The name that the innermost `using` was given, or None."""
    return _named.get()


def record(kernel: Kernel) -> None:
    """Count one product of this kernel."""
    _served[kernel.name] += 1


def served(clear: bool = False) -> dict[str, int]:
    """Products of each kernel since the process began, or since the counts were last cleared."""
    counts = dict(_served)
    if clear:
        _served.clear()
    return counts


def _discovered() -> dict[str, Kernel]:
    global _known
    if _known is None:
        with _lock:
            if _known is None:  # another thread may have looked meanwhile
                _known = _discover()
    return _known


def _discover() -> dict[str, Kernel]:
    known: dict[str, Kernel] = {}
    package = importlib.import_module(GROUP)
    for info in pkgutil.iter_modules(package.__path__):
        module = f"{GROUP}.{info.name}"
        _add(known, module, lambda module=module: importlib.import_module(module))
    for point in entry_points(group=GROUP):
        _add(known, f"{point.name} ({point.value})", point.load, expected=True)
    return known


def _add(known: dict[str, Kernel], origin: str, load: Any, expected: bool = False) -> None:
    """Add the kernels of what `load` returns; where it raises, keep the reason.

    expected: whether something without a kernel is broken. A module of this folder need not have
    one.
    """
    try:
        kernels = kernels_in(load())
        for kernel in kernels:
            require_plain_name("a kernel", kernel.name)
    except Exception as error:  # an import may raise anything; it is shown, and the others work
        _broken[origin] = f"{type(error).__name__}: {error}"
        return
    if expected and not kernels:
        _broken[origin] = "it is no `Kernel` of qbench.kernels.contract, and no tuple of kernels"
    for kernel in kernels:
        if known.setdefault(kernel.name, kernel) is not kernel:
            _broken[origin] = f"the name {kernel.name!r} is already taken"
