"""A Python file that a user names as a plug-in: imported as a module of its own, with what is its.

What runs is what `plugin_sources` finds and a method's identity hashes. While it is imported, a
plug-in defines, and changes nothing that everybody shares.
"""

from __future__ import annotations

import builtins
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from qbench.errors import ConfigError
from qbench.files.ordinary import is_file
from qbench.plugin_sources import (
    files_of_module,
    imported_at_once,
    imports_in,
    named_files,
    own_sources,
)

_beside: set[Path] = set()  # the modules beside plug-ins that may be imported
_names: dict[str, set[str]] = {}  # by the folder of plug-ins, what they import from there
_put_away: dict[tuple[str, str], dict[str, ModuleType]] = {}  # by the folder and such a name
_executed: dict[Path, bytes] = {}  # by the file, its text when it was imported


class _FromSource(SourceFileLoader):
    """Compiles the text that is there, as that is what is hashed.

    A cached `.pyc` is taken for it where its size and the second of its last change are the same.
    Whenever it imports, in its functions as well, it gets what is beside its own plug-in.
    """

    def __init__(self, fullname: str, path: str, folder: str) -> None:
        """folder: of the plug-in that the file is or belongs to."""
        super().__init__(fullname, path)
        self.folder = folder

    def exec_module(self, module: ModuleType) -> None:
        """Execute the file; its import statements are `_import_for` its folder."""
        own = {"__import__": partial(_import_for, self.folder)}
        module.__dict__["__builtins__"] = {**vars(builtins), **own}
        super().exec_module(module)

    def get_code(self, fullname: str) -> CodeType:
        """The code of the file as it is now; SyntaxError or ValueError where it is not Python."""
        text = self.get_data(self.path)
        _executed[Path(self.path).resolve()] = text
        code: CodeType = self.source_to_code(text, self.path)
        return code


def import_plugin_file(path: Path) -> ModuleType:
    """Execute a plug-in's file, under the same module name every time.

    ConfigError naming the file where it is absent, is not Python, or raises; where it changes what
    everybody shares; and where it runs a file beside it that `own_sources` does not see.
    """
    if not is_file(path):
        raise ConfigError(
            f"plug-in {str(path)!r} is not a file; "
            "give the path of a Python file that defines methods or kernels"
        )
    name = plugin_module(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        raise ConfigError(f"plug-in {str(path)!r} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    try:
        _execute(module, Path(os.path.abspath(path)), str(path))
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ConfigError | KeyboardInterrupt):
            raise
        raise ConfigError(
            f"plug-in {str(path)!r} raised {type(error).__name__} on import: {error}"
        ) from error
    return module


def plugin_module(path: Path) -> str:
    """The name of the module that a plug-in's file is executed as."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    return f"qbench_plugin_{module_name(path)}_{digest}"


def import_for_functions(cls: type) -> None:
    """Import the libraries that functions of a plug-in import, such as scikit-learn.

    What a library does when it is imported, such as drawing random numbers, would else be taken for
    the doing of the first function that needs it. What cannot be imported is left to that function.
    """
    for source in files_of_module(cls.__module__):
        if source.suffix == ".py":
            _import_libraries(imports_in(source.read_bytes(), ""))


def _execute(module: ModuleType, file: Path, shown: str) -> None:
    """Execute a plug-in, which may import and define, and nothing else; raises what it raises."""
    from qbench.surroundings import Surroundings  # every plug-in needs torch, and no help text does

    own = _serve_own(file, module.__name__)
    # What an installed package does when it is imported is not the plug-in's doing.
    for source in (file, *own):
        _import_libraries(imported_at_once(source.read_bytes()))
    known = set(sys.modules)
    path = list(sys.path)
    before = Surroundings.now()
    _FromSource(module.__name__, str(file), str(file.parent)).exec_module(module)
    if _without(file.parent, sys.path) == _without(file.parent, path):
        sys.path[:] = path  # what is beside a plug-in is found without its folder there
    changes = before.changes(Surroundings.now())
    hidden = _hidden(file, own, known, _without(file.parent, path))
    if hidden is not None:
        raise ConfigError(
            f"plug-in {shown!r} runs {str(hidden)!r}, of which its identity would know nothing; "
            f"import it by its place beside the plug-in, such as `import folder.part`"
        )
    if changes:
        raise ConfigError(
            f"plug-in {shown!r} changes on import what everybody shares: "
            f"{'; '.join(changes.values())}; let it import and define, and nothing else"
        )


def _without(folder: Path, entries: list[str]) -> list[Path]:
    """The entries of `sys.path` that are not this folder."""
    return [path for path in map(Path, entries) if path.resolve() != folder.resolve()]


def _import_libraries(names: Iterable[str]) -> None:
    """Import those of these dotted names that are no plug-in's, where that is possible."""
    for name in names:
        parent, _, member = name.rpartition(".")
        if name.partition(".")[0] in _finder.folders:
            continue
        with suppress(Exception):  # who needs it will say so
            if not (parent and hasattr(importlib.import_module(parent), member)):
                importlib.import_module(name)


def _hidden(file: Path, own: list[Path], known: set[str], installed: list[Path]) -> Path | None:
    """A file below a plug-in's folder that was executed, and that is none of its own.

    known: the modules that were there before. installed: the entries of `sys.path` then; below the
    folder there may be an environment with packages.
    """
    inside = [entry for entry in installed if entry.is_relative_to(file.parent)]
    named = {path for source in (file, *own) for path in named_files(source)}
    for name in set(sys.modules) - known:
        found = sys.modules[name]
        origin = getattr(found, "__file__", None)
        if origin is None or name.partition(".")[0] in known:
            continue
        path = Path(os.path.abspath(origin))
        is_read = isinstance(getattr(found, "__loader__", None), _FromSource)
        if is_read or (path in named and path.suffix != ".py"):
            continue
        if path.is_relative_to(file.parent) and not any(map(path.is_relative_to, inside)):
            return path
    return None


def module_name(path: Path) -> str:
    """The name of a file as that of a module in no package: `mine_v2` for `mine.v2.py`."""
    return path.stem.replace(".", "_")


def _serve_own(file: Path, module: str) -> list[Path]:
    """Let a plug-in import what is beside it, and not what another one has by the same name.

    Returns its `own_sources`.
    """
    own = own_sources(file, module)
    folder = str(file.parent)
    names = {path.relative_to(file.parent).parts[0].removesuffix(".py") for path in own}
    _names.setdefault(folder, set()).update(names)
    for name in names:
        _turn_to(folder, name)
    loaded: dict[str, Path] = {}
    for name, other in list(sys.modules.items()):
        origin = getattr(other, "__file__", None)
        if name.partition(".")[0] in names and origin is not None:
            loaded[name] = Path(origin).resolve()
    places = {path.resolve() for path in own}
    theirs = _beside.intersection(loaded.values())
    _beside.update(places)
    if not all(path in places and _is_as_executed(path) for path in theirs):
        for name, path in loaded.items():
            if path in theirs:
                del sys.modules[name]
    if own and _finder not in sys.meta_path:
        sys.meta_path.insert(sys.meta_path.index(PathFinder), _finder)
    return own


def _import_for(
    folder: str,
    name: str,
    globals: dict[str, Any] | None = None,
    locals: dict[str, Any] | None = None,
    fromlist: Sequence[str] = (),
    level: int = 0,
) -> Any:
    """`__import__` for the files of a plug-in in a folder."""
    whole = (globals or {}).get("__package__") or "" if level else name
    first = whole.partition(".")[0]
    if first in _names.get(folder, ()):
        _turn_to(folder, first)
    return builtins.__import__(name, globals, locals, fromlist, level)


def _turn_to(folder: str, name: str) -> None:
    """Let a module's name mean what is in this folder of plug-ins, and not in another one.

    The modules of the other one are put away until its plug-ins import again.
    """
    before = _finder.folders.get(name, folder)
    _finder.folders[name] = folder
    if before == folder:
        return
    theirs = _put_away[before, name] = {}
    for key, module in list(sys.modules.items()):
        if key.partition(".")[0] == name and _lies_in(Path(before), module):
            theirs[key] = sys.modules.pop(key)
    sys.modules.update(_put_away.pop((folder, name), {}))


def _lies_in(folder: Path, module: ModuleType) -> bool:
    origin = getattr(module, "__file__", None)
    places = [*getattr(module, "__path__", ())] if origin is None else [origin]
    return any(Path(place).resolve().is_relative_to(folder.resolve()) for place in places)


def _is_as_executed(path: Path) -> bool:
    """Whether a module beside a plug-in has the text with which it was imported."""
    with suppress(OSError):
        return path.read_bytes() == _executed.get(path)
    return False


class _Beside(MetaPathFinder):
    """Finds what plug-ins import from beside them, and nothing else that lies there.

    With a folder on sys.path, a file there would take the place of a library that others import.
    """

    def __init__(self) -> None:
        self.folders: dict[str, str] = {}  # by the module, which is in no package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        folder = self.folders.get(fullname.partition(".")[0])
        if folder is None:
            return None
        # A module of a package is looked for where the package lies.
        spec = PathFinder.find_spec(fullname, [folder, *sys.path] if path is None else path)
        if spec is None or not isinstance(spec.loader, SourceFileLoader):
            return spec
        if Path(spec.loader.path).resolve() in _beside:
            spec.loader = _FromSource(fullname, spec.loader.path, folder)
        return spec


_finder = _Beside()
