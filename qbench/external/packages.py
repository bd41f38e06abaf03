"""Which packages there are, and where the files about each stand."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from types import ModuleType

from qbench.errors import ConfigError, unknown_name
from qbench.external.contract import Package

ROOM = "qbench.methods.external"


@cache
def modules() -> tuple[ModuleType, ...]:
    """The files of `methods/external/`, imported, which imports none of the packages."""
    room = importlib.import_module(ROOM)
    names = [info.name for info in pkgutil.iter_modules(room.__path__) if not info.ispkg]
    return tuple(importlib.import_module(f"{ROOM}.{name}") for name in sorted(names))


def packages() -> dict[str, Package]:
    """Every package by name."""
    declared = {}
    for module in modules():
        for value in vars(module).values():
            if isinstance(value, Package):
                declared[value.name] = value
    return declared


def get_package(name: str) -> Package:
    """The package called `name`; ConfigError with the nearest name."""
    known = packages()
    if name not in known:
        raise ConfigError(unknown_name("package", name, known))
    return known[name]


def requirements(package: Package) -> Path:
    """The file with what is installed for a package; ConfigError where nothing can be."""
    path = _folder(package) / f"{package.name}.txt"
    if not path.is_file():
        raise ConfigError(f"package {package.name!r} has no environment: {package.unavailable}")
    return path


def worker(package: Package) -> Path:
    """The script that its environment runs; ConfigError where it has none."""
    if package.worker is None:
        raise ConfigError(f"package {package.name!r} cannot be run: {package.unavailable}")
    return _folder(package) / "workers" / package.worker


def sources(package: Package) -> list[Path]:
    """The files beside its declaration that decide what its methods compute."""
    if package.worker is None:
        return []
    script = worker(package)
    return [script, protocol(), requirements(package)]


def protocol() -> Path:
    """The module with what every worker is handed and hands back."""
    return _own() / "workers" / "worker_files.py"


def _folder(package: Package) -> Path:
    return _own() if package.folder is None else package.folder


def _own() -> Path:
    room = importlib.import_module(ROOM)
    return Path(str(room.__file__)).parent
