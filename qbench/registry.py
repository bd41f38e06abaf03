"""Name -> method: the folder `methods/`, entry points of installed packages, and plug-in files.

Methods of other packages (`methods/external/`) are known by name, but are not listed and checked
with the others: `qbench env list` lists them.

A file or an entry point that cannot be used is kept with the reason: `qbench list methods` shows
it, and the others still work. The folder and the entry points are read once in a process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import math
import pkgutil
from collections.abc import Iterable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from qbench.contracts import DECLARED
from qbench.declarations import Declaration, declaration_of, methods_in
from qbench.errors import ConfigError, QbenchError, reason_of, require_seed, unknown_name
from qbench.external.packages import modules, sources
from qbench.method_source import (
    Unreadable,
    file_label,
    module_file,
    read_declarations,
)
from qbench.plugin_file import import_plugin_file
from qbench.plugin_sources import files_of_module, imports_in, named_files

PACKAGE = "qbench.methods"
GROUP = "qbench.methods"  # of entry points
# Modules that methods derive from or call as if they were part of the method's own file.
_BUILDS_ON = (
    "qbench.calibration.folding",
    "qbench.calibration.folding_search",
    "qbench.calibration.reconstruction",
    "qbench.calibration.training",
)
# A module that imports one of these can ask for any method by its name.
_BY_NAME = (
    "qbench",
    "qbench.*",
    "qbench.get_method",
    "qbench.quantize",
    "qbench.methods",
    "qbench.methods.*",
)
_plugins: dict[str, Declaration] = {}


@dataclasses.dataclass(frozen=True)
class Broken:
    """A file or a plug-in that cannot be used.

    origin: the file, or the object that an entry point names. reason: one sentence.
    """

    origin: str
    reason: str


def declarations() -> dict[str, Declaration | Broken]:
    """What every method declares, by name. The files of `methods/` are not imported for it."""
    return _installed() | _plugins


@cache
def external() -> dict[str, Declaration]:
    """What the methods of other packages declare, by name; none of the packages is imported."""
    known = {}
    for module in modules():
        file = f"methods/external/{module.__name__.rpartition('.')[2]}.py"
        for cls in methods_in(module):
            declaration = declaration_of(cls, file)
            known[declaration.name] = declaration
    return known


def read_anew() -> None:
    """Forget what was read of the folder and the entry points; the next call reads them again."""
    _installed.cache_clear()


def methods() -> dict[str, Any]:
    """Every method by name, imported: its class, or `Broken`."""
    classes: dict[str, Any] = {}
    for name, entry in declarations().items():
        if isinstance(entry, Broken):
            classes[name] = entry
            continue
        try:
            classes[name] = entry.load()
        except Exception as error:  # whatever a file raises on import, the others still work
            classes[name] = Broken(entry.file, reason_of(error))
    return classes


def declared(name: str) -> Declaration:
    """What the method called `name` declares. A file of `methods/` is not imported for it.

    ConfigError with the nearest name where there is no such method, or with the reason why it is
    broken.
    """
    known = external() | declarations()
    entry = known.get(name)
    if isinstance(entry, Declaration):
        return entry
    if isinstance(entry, Broken):
        raise ConfigError(f"method {name!r} from {entry.origin} cannot be used: {entry.reason}")
    usable = [key for key, other in known.items() if isinstance(other, Declaration)]
    raise ConfigError(unknown_name("method", name, usable, "qbench list methods"))


def method_class(name: str) -> Any:
    """The class of the method called `name`.

    ConfigError as for `declared`, and where the file cannot be imported.
    """
    declaration = declared(name)
    try:
        return declaration.load()
    except Exception as error:  # an import may raise anything
        raise ConfigError(
            f"method {name!r} from {declaration.file} cannot be used: {reason_of(error)}"
        ) from error


def get_method(name: str, **params: Any) -> Any:
    """The method called `name` with its hyper-parameters.

    params: converted to the declared types, so that `period="4"` becomes 4. ConfigError for an
    unknown name or parameter, and for a value that has another type or that the method refuses.
    """
    cls = method_class(name)
    values = {}
    for key, value in params.items():
        check_parameter(name, key, parameters(cls))
        try:
            values[key] = _type_of(cls, key).validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{name}.{key}={value!r}: {error.errors()[0]['msg']}") from None
        if isinstance(values[key], float) and not math.isfinite(values[key]):
            raise ConfigError(f"{name}.{key}={value!r} is no finite number; give one")
        if key == "seed" and isinstance(values[key], int):
            require_seed(f"{name}.{key}", values[key])
    try:
        return cls(**values)
    except QbenchError as error:
        raise ConfigError(f"method {name!r}: {error}") from error
    except Exception as error:  # whatever the constructor of a plug-in raises
        raise ConfigError(f"method {name!r} cannot be made: {reason_of(error)}") from error


def drawn(method: Any, draw: int) -> Any:
    """The method for a draw of a cell: `draw` is added to the `seed` of a method that has one.

    So draws also differ in the random numbers of the method. Draw 0 leaves the method as it is.
    """
    seed = parameters(method).get("seed")
    if not draw or not isinstance(seed, int):
        return method
    return dataclasses.replace(method, seed=seed + draw)


@cache
def _type_of(cls: Any, key: str) -> TypeAdapter[Any]:
    """Converts values of a parameter. It is kept, as a grid asks for it thousands of times."""
    return TypeAdapter(get_type_hints(cls)[key])


def check_parameter(method: str, key: str, known: dict[str, Any]) -> None:
    """ConfigError with the nearest name where a method has no parameter `key`.

    method: its name. known: its parameters, by name.
    """
    if key not in known:
        raise ConfigError(unknown_name(f"parameter of method {method!r}", key, known))


def parameters(method: Any) -> dict[str, Any]:
    """Hyper-parameters by name, of a method class (the defaults) or an instance."""
    if isinstance(method, type):
        return {field.name: field.default for field in dataclasses.fields(method)}
    return dataclasses.asdict(method)


def load_plugin(path: Path) -> list[str]:
    """Import a Python file and register the methods that it defines; returns their names.

    ConfigError, naming the file, where it is absent, cannot be imported, defines no method or an
    invalid one, or a method whose name exists.
    """
    names = register_methods(import_plugin_file(path), path)
    if not names:
        raise ConfigError(
            f"plug-in {str(path)!r} defines no method: "
            f"a dataclass that declares {', '.join(DECLARED)}"
        )
    return names


def register_methods(module: ModuleType, path: Path) -> list[str]:
    """Register the methods of a plug-in that has been imported; returns their names.

    path: the plug-in's file. ConfigError where a method is invalid, or its name exists.
    """
    loaded = [declaration_of(cls, str(path)) for cls in methods_in(module)]
    names = [declaration.name for declaration in loaded]
    for declaration in loaded:
        other = (external() | declarations()).get(declaration.name)
        again = isinstance(other, Declaration) and other.module == module.__name__
        if other is not None and not again:
            place = other.file if isinstance(other, Declaration) else other.origin
            raise ConfigError(
                f"plug-in {str(path)!r} defines method {declaration.name!r}, which exists; "
                f"choose another name than that of {place}"
            )
        if names.count(declaration.name) > 1:
            raise ConfigError(
                f"plug-in {str(path)!r} defines method {declaration.name!r} twice; "
                "give each class a name of its own"
            )
    for declaration in loaded:
        _plugins[declaration.name] = declaration
    return names


def source_hash(cls: type) -> str:
    """12 hex digits of the SHA-256 of the source files of a method.

    These are the file that defines it and

    - the files of `methods/` that it imports, anywhere in the file;
    - for a plug-in, also the files that it imports from its own package or from beside it, and the
      files there that its strings name, such as "table.txt"; all of `methods/` where it can ask for
      methods by name;
    - for a method of another package, its worker and its requirements.
    """
    package = getattr(cls, "package", None)
    return _hash_of(
        [*_source_files(cls.__module__), *([] if package is None else sources(package))]
    )


def module_hash(module: str) -> str:
    """The same of a module that has been imported, such as that of a plug-in's task."""
    return _hash_of(_source_files(module))


def _hash_of(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _source_files(module: str) -> list[Path]:
    """The Python files of `source_hash`, files that they name, and C sources beside them."""
    own = files_of_module(module)
    imported = [module]
    if not module.startswith("qbench."):
        imported = [name for path in own for name in imports_in(path.read_bytes(), "")]
    code = [*_files_of_methods(imported), *own]
    tables = {path for source in own if source.suffix == ".py" for path in named_files(source)}
    compiled = [path.with_suffix(suffix) for path in code for suffix in (".c", ".h")]
    return [*code, *sorted(tables - {*own}), *(path for path in compiled if path.is_file())]


def _files_of_methods(names: Iterable[str]) -> list[Path]:
    """The files that are part of methods, among all that importing these dotted names leads to."""
    files: dict[str, Path] = {}
    waiting = [*names]
    while waiting:
        for module in _modules_of_methods(waiting.pop()):
            path = module_file(module)
            if path is not None and module not in files:
                files[module] = path
                package = module if path.name == "__init__.py" else module.rpartition(".")[0]
                waiting += imports_in(path.read_bytes(), package)
    return [files[module] for module in sorted(files)]


def _modules_of_methods(name: str) -> list[str]:
    """The modules that are part of methods, among those that importing a dotted name may give."""
    if name in _BY_NAME or name.startswith(("qbench.registry", "qbench.quantization")):
        path = importlib.import_module(PACKAGE).__path__
        return [f"{PACKAGE}.{info.name}" for info in pkgutil.iter_modules(path)]
    modules = (name, name.rpartition(".")[0])
    return [key for key in modules if key.startswith(f"{PACKAGE}.") or key in _BUILDS_ON]


@cache
def _installed() -> dict[str, Declaration | Broken]:
    """Our own methods, and those of installed packages."""
    usable: dict[str, Declaration] = {}
    broken: list[tuple[str, Broken]] = []
    package = importlib.import_module(PACKAGE)
    for info in pkgutil.iter_modules(package.__path__):
        _add_own(info.name, usable, broken)
    for point in entry_points(group=GROUP):
        _add_entry_point(point, usable, broken)
    registered: dict[str, Declaration | Broken] = dict(usable)
    for name, entry in broken:
        key = f"{name} ({entry.origin})" if name in registered else name
        registered[key] = entry
    return registered


def _add_own(stem: str, usable: dict[str, Declaration], broken: list[tuple[str, Broken]]) -> None:
    """Add the methods of one file of the folder. A file without any is code that others share."""
    path = module_file(f"{PACKAGE}.{stem}")
    file = stem if path is None else file_label(path)
    try:
        own = _read_own(f"{PACKAGE}.{stem}", file)
    except Exception as error:  # whatever is wrong with one file, the others still work
        broken.append((stem, Broken(file, reason_of(error))))
        return
    for declaration in own:
        other = usable.get(declaration.name)
        if other is None:
            usable[declaration.name] = declaration
        else:
            broken.append((declaration.name, _taken(file, declaration.name, other)))


def _read_own(module: str, file: str) -> list[Declaration]:
    try:
        return read_declarations(module)
    except Unreadable:
        classes = methods_in(importlib.import_module(module))
        return [declaration_of(cls, file) for cls in classes]


def _add_entry_point(
    point: EntryPoint, usable: dict[str, Declaration], broken: list[tuple[str, Broken]]
) -> None:
    other = usable.get(point.name)
    if other is not None:
        broken.append((point.name, _taken(point.value, point.name, other)))
        return
    try:
        declaration = declaration_of(point.load(), point.value)
        if declaration.name != point.name:  # what is stored has the declared one
            raise ConfigError(
                f"{point.value} declares name={declaration.name!r}; it must be that of its entry "
                f"point, {point.name!r}"
            )
    except Exception as error:  # a third party's import may raise anything; it is shown
        broken.append((point.name, Broken(point.value, reason_of(error))))
    else:
        usable[point.name] = declaration


def _taken(origin: str, name: str, other: Declaration) -> Broken:
    return Broken(
        origin,
        f"{origin} defines method {name!r}, which {other.file} defines already; "
        "choose another name",
    )
