"""A Python file that a user names as a plug-in: imported as a module of its own, with what is its.

Of its own is what it imports from its package or from beside it, and the files there that its
strings name. That is read from the sources: what a process has imported besides does not count.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from qbench.errors import ConfigError
from qbench.files.ordinary import is_file

_beside: set[Path] = set()  # the modules beside plug-ins that were imported


def import_plugin_file(path: Path) -> ModuleType:
    """Execute a plug-in's file, under the same module name every time.

    ConfigError naming the file where it is absent, is not Python, or raises.
    """
    if not is_file(path):
        raise ConfigError(
            f"plug-in {str(path)!r} is not a file; "
            "give the path of a Python file that defines methods or kernels"
        )
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"qbench_plugin_{module_name(path)}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plug-in {str(path)!r} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    _serve_own(Path(os.path.abspath(path)), name)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(
            f"plug-in {str(path)!r} raised {type(error).__name__} on import: {error}"
        ) from error
    return module


def module_name(path: Path) -> str:
    """The name of a file as that of a module in no package: `mine_v2` for `mine.v2.py`."""
    return path.stem.replace(".", "_")


def own_sources(file: Path, module: str, is_there: Callable[[Path], bool] = is_file) -> list[Path]:
    """The Python files of its own that a plug-in imports or names, also through each other, sorted.

    file, module: of the plug-in. They lie in its package, or beside a file that is in none.
    is_there: whether such a file exists.
    """
    base = file.parents[module.count(".") + (file.name == "__init__.py")]
    # Where packages are installed, what lies beside is of others.
    top = module.partition(".")[0]
    installed = base.name in ("site-packages", "dist-packages")
    of_package = "." in module or file.name == "__init__.py" or installed
    seen: set[Path] = set()
    waiting = [file]
    while waiting:
        importing = waiting.pop()
        package = ".".join(importing.parent.relative_to(base).parts)
        paths = [path for path in named_files(importing, is_there) if path.suffix == ".py"]
        for name in imports_in(importing.read_bytes(), package):
            first = name.partition(".")[0]
            if first != "qbench" and (first == top or not of_package):
                paths += [path for path in _places(base, name) if is_there(path)]
        new = {*paths} - seen - {file}
        seen |= new
        waiting += new
    return sorted(seen)


def named_files(file: Path, is_there: Callable[[Path], bool] = is_file) -> list[Path]:
    """The files in the folder of a source file, or below, that its strings name, sorted.

    Such as a table. One that cannot be read is none of them. is_there: whether a file exists.
    """
    named = set()
    for text in _strings_in(file.read_bytes()):
        with suppress(OSError, ValueError):  # most strings are no names
            path = Path(os.path.normpath(file.parent / text))
            if not (path.is_relative_to(file.parent) and is_there(path)):
                continue
            if path.resolve().is_relative_to(file.parent.resolve()) and os.access(path, os.R_OK):
                named.add(path)
    return sorted(named - {file})


@cache  # keyed by the text, so that an edited file is read again
def imports_in(source: bytes, package: str) -> tuple[str, ...]:
    """The dotted names of all that a source file may import, in functions, too.

    `a.b` for `from a import b`, and `a.*` for all of it; `a.b` and `a` for `import a.b`, which
    binds both. package: that the file stands in, empty for none. Where it is not Python there are
    none.
    """
    names: list[str] = []
    for node in _nodes(source):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names.append(alias.name)
                if alias.asname is None:
                    names.append(alias.name.partition(".")[0])
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError):  # of more dots than there are packages
                origin = importlib.util.resolve_name(
                    "." * node.level + (node.module or ""), package
                )
                names += [f"{origin}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            name = node.args[0]
            if called not in ("import_module", "__import__") or not isinstance(name, ast.Constant):
                continue
            with suppress(ImportError):
                names.append(importlib.util.resolve_name(str(name.value), package))
    return tuple(dict.fromkeys(names))


@cache
def _strings_in(source: bytes) -> tuple[str, ...]:
    constants = [node.value for node in _nodes(source) if isinstance(node, ast.Constant)]
    return tuple(dict.fromkeys(value for value in constants if isinstance(value, str)))


def _nodes(source: bytes) -> Iterator[ast.AST]:
    with suppress(SyntaxError, ValueError):
        yield from ast.walk(ast.parse(source))


def _places(base: Path, name: str) -> Iterator[Path]:
    """Where the files of a module lie, and of the packages that it stands in."""
    place = base
    for part in name.split("."):
        place = place / part
        yield place.with_suffix(".py")
        yield place / "__init__.py"


def _serve_own(file: Path, module: str) -> None:
    """Let a plug-in import what is beside it, and not what another one has by the same name."""
    own = own_sources(file, module)
    for path in own:
        parts = path.relative_to(file.parent).with_suffix("").parts
        name = ".".join(parts).removesuffix(".__init__")
        origin = getattr(sys.modules.get(name), "__file__", None)
        if origin is not None and Path(origin).resolve() in _beside - {path.resolve()}:
            del sys.modules[name]
        _finder.folders[parts[0]] = str(file.parent)
    _beside.update(path.resolve() for path in own)
    if own and _finder not in sys.meta_path:
        sys.meta_path.insert(sys.meta_path.index(PathFinder), _finder)


class _Beside(MetaPathFinder):
    """Finds what plug-ins import from beside them, and nothing else that lies there.

    With a folder on sys.path, a file there would take the place of a library that others import.
    """

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}  # by the module, which is in no package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folder = self.folders.get(fullname)
        return None if folder is None else PathFinder.find_spec(fullname, [folder, *sys.path])


_finder = _Beside()
