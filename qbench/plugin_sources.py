"""What a plug-in's file is made of: what it imports from beside it, and the files that it names.

That is read from the sources: what a process has imported besides does not count.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from qbench.files.ordinary import is_file


def files_of_module(module: str) -> list[Path]:
    """The file of a module that has been imported, and its `own_sources`; none of ours."""
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    if module.startswith("qbench.") or not file.is_file():
        return []
    return [file, *(own_sources(file, module) if file.suffix == ".py" else ())]


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
    return tuple(dict.fromkeys(_imported(_nodes(source), package)))


def imported_at_once(source: bytes) -> tuple[str, ...]:
    """Of these the absolute names that importing the file itself may import, not its functions."""
    statements: list[ast.AST] = []
    waiting: list[ast.AST] = [*_statements(source)]
    while waiting:
        node = waiting.pop(0)
        is_for_types = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if isinstance(node, (ast.stmt, ast.ExceptHandler)) and not is_for_types:
            statements.append(node)
            is_later = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            waiting = [*(() if is_later else ast.iter_child_nodes(node)), *waiting]
    return tuple(dict.fromkeys(_imported(statements, "")))


def _imported(nodes: Iterable[ast.AST], package: str) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                if alias.asname is None:
                    yield alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError):  # of more dots than there are packages
                origin = importlib.util.resolve_name(
                    "." * node.level + (node.module or ""), package
                )
                for alias in node.names:
                    yield f"{origin}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args:
            called = ast.unparse(node.func).rpartition(".")[2]
            name = node.args[0]
            if called not in ("import_module", "__import__") or not isinstance(name, ast.Constant):
                continue
            with suppress(ImportError):
                yield importlib.util.resolve_name(str(name.value), package)


@cache
def _strings_in(source: bytes) -> tuple[str, ...]:
    """The strings, and what those that are joined at the end of a path make together."""
    texts = []
    for node in _nodes(source):
        if isinstance(node, ast.Constant):
            texts.append(_texts_at_the_end([node]))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            texts.append(_texts_at_the_end(_divided(node)))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in ("join", "joinpath", "Path"):
                texts.append(_texts_at_the_end(node.args))
    return tuple(dict.fromkeys("/".join(parts) for parts in texts if parts))


def _divided(node: ast.expr) -> list[ast.expr]:
    """`[folder, "tables", "a.json"]` of `folder / "tables" / "a.json"`."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return [*_divided(node.left), node.right]
    return [node]


def _texts_at_the_end(nodes: Sequence[ast.expr]) -> list[str]:
    texts: list[str] = []
    for node in reversed(nodes):
        if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            break
        texts.insert(0, node.value)
    return texts


def _nodes(source: bytes) -> Iterator[ast.AST]:
    for statement in _statements(source):
        yield from ast.walk(statement)


def _statements(source: bytes) -> list[ast.stmt]:
    with suppress(SyntaxError, ValueError):
        return ast.parse(source).body
    return []


def _places(base: Path, name: str) -> Iterator[Path]:
    """Where the files of a module lie, and of the packages that it stands in."""
    place = base
    for part in name.split("."):
        place = place / part
        yield place.with_suffix(".py")
        yield place / "__init__.py"
