"""Name -> method: the folder `methods/`, entry points of installed packages, and plug-in files.

A broken plug-in is kept with its reason, so that `qbench list methods` shows it and the others
still work.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from qbench.contracts import verb_of
from qbench.errors import ConfigError, unknown_name

_DECLARED = ("name", "paper", "format", "bits", "symmetric")
_BUILDS_ON = ("qbench.methods.", "qbench.calibration.reconstruction", "qbench.calibration.folding")
_plugins: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Broken:
    """A plug-in that could not be used. origin: its entry point. reason: one sentence."""

    origin: str
    reason: str


def methods() -> dict[str, Any]:
    """All methods by name, classes or `Broken`: our own, entry points of group `qbench.methods`, plug-in files."""
    package = importlib.import_module("qbench.methods")
    found: dict[str, Any] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        found |= {cls.name: cls for cls in _methods_in(module)}
    for point in entry_points(group="qbench.methods"):
        if isinstance(found.get(point.name), type):
            found[f"{point.name} ({point.value})"] = Broken(
                point.value, f"the name {point.name!r} is already taken"
            )
            continue
        try:
            found[point.name] = _checked(point.load())
        except (
            Exception
        ) as error:  # a third party's import may raise anything; it is shown, not swallowed
            found[point.name] = Broken(point.value, f"{type(error).__name__}: {error}")
    return found | _plugins


def method_class(name: str) -> Any:
    """The class of the method called `name`; ConfigError with the nearest name, or with why it is broken."""
    known = methods()
    found = known.get(name)
    if isinstance(found, Broken):
        raise ConfigError(f"method {name!r} from {found.origin} cannot be used: {found.reason}")
    if found is None:
        raise ConfigError(
            unknown_name(
                "method", name, [key for key, cls in known.items() if isinstance(cls, type)]
            )
        )
    return found


def get_method(name: str, **params: Any) -> Any:
    """The method called `name` with its hyper-parameters, converted to the declared types (`period="4"` becomes 4).

    Raises ConfigError for an unknown name or parameter, or a value that does not fit.
    """
    cls = method_class(name)
    hints = get_type_hints(cls)
    fields = [field.name for field in dataclasses.fields(cls)]
    values = {}
    for key, value in params.items():
        if key not in fields:
            raise ConfigError(unknown_name(f"parameter of method {name!r}", key, fields))
        try:
            values[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{name}.{key}={value!r}: {error.errors()[0]['msg']}") from None
    return cls(**values)


def load_plugin(path: Path) -> list[str]:
    """Import a Python file and register the methods it defines; returns their names.

    Raises ConfigError naming the file where it is absent, raises, defines no method, or takes a
    name that exists.
    """
    if not path.is_file():
        raise ConfigError(
            f"plug-in {str(path)!r} is not a file; give the path of a Python file that defines a method"
        )
    module_name = (
        f"qbench_plugin_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    )
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plug-in {str(path)!r} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"plug-in {str(path)!r} raised {type(error).__name__} on import: {error}"
        ) from error
    found = [_checked(cls) for cls in _methods_in(module)]
    if not found:
        raise ConfigError(
            f"plug-in {str(path)!r} defines no method: a dataclass that declares {', '.join(_DECLARED)}"
        )
    for cls in found:
        taken = methods().get(cls.name)
        if taken is not None and getattr(taken, "__module__", None) != module_name:
            raise ConfigError(
                f"plug-in {str(path)!r} defines method {cls.name!r}, which exists; choose another name"
            )
        _plugins[cls.name] = cls
    return [cls.name for cls in found]


def parameters(method: Any) -> dict[str, Any]:
    """Hyper-parameters by name, of a method class (the defaults) or an instance."""
    if isinstance(method, type):
        return {field.name: field.default for field in dataclasses.fields(method)}
    return dataclasses.asdict(method)


def source_hash(cls: type) -> str:
    """12 hex digits of the sha256 of the file that defines the method, and of the files it builds on."""
    seen, waiting = set[str](), [cls.__module__]
    while waiting:
        name = waiting.pop()
        if name not in seen and (name == cls.__module__ or name.startswith(_BUILDS_ON)):
            seen.add(name)
            waiting += [
                getattr(value, "__module__", None) or ""
                for value in vars(sys.modules[name]).values()
            ]
    files = [inspect.getsourcefile(sys.modules[name]) for name in sorted(seen)]
    return hashlib.sha256(b"".join(Path(file).read_bytes() for file in files if file)).hexdigest()[
        :12
    ]


def _methods_in(module: ModuleType) -> list[Any]:
    return [
        cls
        for cls in vars(module).values()
        if isinstance(cls, type)
        and cls.__module__ == module.__name__
        and all(hasattr(cls, key) for key in _DECLARED)
    ]


def _checked(cls: Any) -> Any:
    missing = [key for key in _DECLARED if not hasattr(cls, key)]
    if missing or not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(
            f"{cls!r} is not a method: a frozen dataclass that declares {', '.join(_DECLARED)}"
        )
    verb_of(cls)
    return cls
