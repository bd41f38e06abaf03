"""What a method's file declares, read from its source without executing it.

A list of methods and a check of a name need only what stands literally in the source. Importing the
methods would import torch, which takes two seconds of processor time; reading them takes a tenth.
What the source does not say plainly raises `Unreadable`, and then the file has to be imported.
"""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from qbench.contracts import DECLARED, VERBS
from qbench.declarations import OF_TRAINING, Declaration


class Unreadable(Exception):
    """The source does not say plainly what its classes declare; the module must be imported."""


def read_declarations(module: str) -> list[Declaration]:
    """What the methods in one of our own modules declare, read from its source.

    module: its dotted name. Raises Unreadable where the module has to be imported instead, and
    SyntaxError where it is not Python.
    """
    path = module_file(module)
    if path is None:
        raise Unreadable(module)
    tree = _parsed(path)
    _require_plain(tree)
    declarations = []
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        source = _read_class(node, tree)
        if source.may_be_a_method:
            declarations.append(source.declaration(module, node.name, file_label(path)))
    return declarations


def read_parameters(module: str, class_name: str) -> dict[str, Any]:
    """The hyper-parameters of one class of ours by name, with defaults, read from its source."""
    path = module_file(module)
    node = None if path is None else _classes(_parsed(path)).get(class_name)
    if path is None or node is None:
        raise Unreadable(f"{module}.{class_name}")
    return _literals(_read_class(node, _parsed(path)).parameters)


def names_in(source: bytes) -> tuple[dict[str, str | None], set[str]]:
    """By class, the names that a file's methods declare; and the classes that these derive from.

    A name is None where it does not stand there literally, of a class that is a dataclass or
    derives from one. SyntaxError or ValueError where the source is not Python.
    """
    names: dict[str, str | None] = {}
    bases: set[str] = set()
    tree = ast.parse(source)
    for node in _classes(tree).values():
        if not (node.decorator_list or node.bases):
            continue  # neither a dataclass nor derived from one
        own = _ClassSource(plain=True)
        for statement in node.body:
            _read_statement(statement, own)
        name = own.constants.get("name")
        is_text = isinstance(name, ast.Constant) and isinstance(name.value, str)
        line = _line_of(node, tree)
        if name is not None and (is_text or _has_dataclass(line, tree)):
            names[node.name] = ast.literal_eval(name) if is_text else None
            bases |= line.keys() - {node.name}
    return names, bases


def _line_of(node: ast.ClassDef, tree: ast.Module) -> dict[str, ast.ClassDef | None]:
    """A class and all that it derives from, None for what the file does not define."""
    classes = _classes(tree)
    line: dict[str, ast.ClassDef | None] = {}
    waiting = [node.name]
    while waiting:
        name = waiting.pop()
        if name not in line:
            line[name] = defined = classes.get(name)
            waiting += [] if defined is None else [ast.unparse(base) for base in defined.bases]
    return line


def _has_dataclass(line: dict[str, ast.ClassDef | None], tree: ast.Module) -> bool:
    """Whether one of these classes is decorated as a dataclass, or imported from ours."""
    ours = set()
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and _is_ours(statement.module):
            ours |= {alias.asname or alias.name for alias in statement.names}
        elif isinstance(statement, ast.Import):
            ours |= {
                alias.asname or alias.name for alias in statement.names if _is_ours(alias.name)
            }
    for name, node in line.items():
        decorators = [] if node is None else node.decorator_list
        if any("dataclass" in ast.unparse(decorator) for decorator in decorators):
            return True
        if node is None and not ours.isdisjoint((name, name.rpartition(".")[0])):
            return True
    return False


def module_file(module: str) -> Path | None:
    """The file of a module of ours, found without importing the packages that it stands in."""
    _, room, *rest = module.split(".")
    spec = importlib.util.find_spec(f"qbench.{room}")
    if spec is None or spec.origin is None:
        return None
    if not rest:
        return Path(spec.origin)
    path = Path(spec.origin).parent.joinpath(*rest)
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def file_label(path: Path) -> str:
    """A file of ours for messages, such as `methods/rtn.py`."""
    return f"{path.parent.name}/{path.name}"


@dataclass
class _ClassSource:
    """What the source of a class says, with what it inherits.

    plain: it is decorated as a dataclass, and nothing of it is hidden. constants: class variables.
    parameters: fields of the dataclass, None where there is no default. functions: its methods.
    hidden_base: it derives from a class that is not in one of our files.
    """

    plain: bool
    constants: dict[str, ast.expr] = field(default_factory=dict)
    parameters: dict[str, ast.expr | None] = field(default_factory=dict)
    functions: set[str] = field(default_factory=set)
    decorated: bool = False
    hidden_base: bool = False

    @property
    def may_be_a_method(self) -> bool:
        """True also where only importing would tell."""
        if any(verb in self.functions or verb in self.constants for verb in VERBS):
            return True
        return self.decorated and (self.hidden_base or "name" in self.constants)

    def inherit(self, base: _ClassSource) -> None:
        """Take over what a base class declares."""
        self.plain &= base.plain
        self.hidden_base |= base.hidden_base
        self.constants |= base.constants
        self.parameters |= base.parameters
        self.functions |= base.functions

    def declaration(self, module: str, class_name: str, file: str) -> Declaration:
        """What it declares; Unreadable where the contract seems broken, so that importing says how.

        The messages to a method's author are made in one place, from the imported class.
        """
        verbs = [verb for verb in VERBS if verb in self.functions]
        declared = all(key in self.constants for key in DECLARED)
        # An assigned verb, or a field and a class variable of one name: only Python can tell.
        confused = self.constants.keys() & {*VERBS, *self.parameters}
        if not (self.plain and declared and len(verbs) == 1) or confused:
            raise Unreadable(class_name)
        trains = "trains" in self.constants and bool(_literal(self.constants["trains"]))
        if trains and not self.functions | self.parameters.keys() >= {*OF_TRAINING}:
            raise Unreadable(class_name)
        constants = {key: self.constants[key] for key in DECLARED}
        return Declaration(
            **_literals(constants),
            verb=verbs[0],
            trains=trains,
            parameters=_literals(self.parameters),
            module=module,
            class_name=class_name,
            file=file,
        )


def _read_class(node: ast.ClassDef, tree: ast.Module) -> _ClassSource:
    """A class of a parsed module, after the classes that it derives from."""
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    is_dataclass = decorators in (["dataclass"], ["dataclass(frozen=True)"])
    source = _ClassSource(plain=is_dataclass and len(node.bases) <= 1 and not node.keywords)
    source.decorated = bool(decorators)  # any decorator could make a dataclass
    for base in node.bases:
        inherited = _read_base(base, tree)
        if inherited is None:
            source.plain = False
            source.hidden_base = True
        else:
            source.inherit(inherited)
    for statement in node.body:
        _read_statement(statement, source)
    return source


def _read_statement(statement: ast.stmt, source: _ClassSource) -> None:
    """One statement of a class's body."""
    if isinstance(statement, ast.FunctionDef):
        source.functions.add(statement.name)
    elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        name = statement.target.id
        if not _is_classvar(statement.annotation):
            # Assigning anew keeps a field in the place of its first mention, as dataclasses do.
            source.parameters[name] = statement.value
        elif statement.value is not None:
            source.constants[name] = statement.value
    elif isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        # Without an annotation it is no field: `name = "mine"` in a class derived from another.
        source.constants[statement.targets[0].id] = statement.value
    elif not _is_text(statement):
        source.plain = False


def _read_base(base: ast.expr, tree: ast.Module) -> _ClassSource | None:
    """The class that a base names, in this module or in the one of ours it comes from, or None."""
    if not isinstance(base, ast.Name):
        return None
    own = _classes(tree).get(base.id)
    if own is not None:
        return _read_class(own, tree)
    for statement in tree.body:
        if not isinstance(statement, ast.ImportFrom) or not _is_ours(statement.module):
            continue
        for alias in statement.names:
            path = module_file(statement.module or "")
            if base.id != (alias.asname or alias.name) or path is None:
                continue
            other = _parsed(path)
            node = _classes(other).get(alias.name)
            return None if node is None else _read_class(node, other)
    return None


def _require_plain(tree: ast.Module) -> None:
    """Unreadable unless importing the module does no more than import what exists, and define.

    A file that would raise when it is imported must not be listed as if it worked: a missing
    package, a name that one of our modules does not have, or a `raise` is found by importing it.
    """
    definitions = (ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            fine = all(_exists(alias.name) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            fine = statement.level == 0 and _has_names(statement)
        else:
            fine = (
                isinstance(statement, definitions)
                or _is_text(statement)
                or _is_for_types(statement)
            )
        if not fine:
            raise Unreadable(ast.unparse(statement))


def _exists(module: str) -> bool:
    if _is_ours(module):
        return module_file(module) is not None
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def _has_names(statement: ast.ImportFrom) -> bool:
    """Whether `from module import names` finds the module, and in one of ours also the names.

    A name may be that of a module in a folder.
    """
    module = statement.module or ""
    if not _is_ours(module):
        return _exists(module)
    path = module_file(module)
    bound = set() if path is None else _bound_names(_parsed(path))
    for alias in statement.names:
        if alias.name not in bound and module_file(f"{module}.{alias.name}") is None:
            return False
    return True


def _bound_names(tree: ast.Module) -> set[str]:
    """The names that the plain statements of a module bind."""
    names = set()
    for statement in tree.body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            names.add(statement.name)
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in statement.names}
        elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
            target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            names.add(ast.unparse(target))
    return names


def _is_ours(module: str | None) -> bool:
    return module is not None and module.startswith("qbench.")


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_for_types(statement: ast.stmt) -> bool:
    """Whether it is an `if TYPE_CHECKING:`, which no import runs."""
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"


def _is_classvar(annotation: ast.expr) -> bool:
    return ast.unparse(annotation).partition("[")[0] in ("ClassVar", "typing.ClassVar")


def _classes(tree: ast.Module) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


def _parsed(path: Path) -> ast.Module:
    return _parse(path.read_text(encoding="utf-8"), path.name)


@cache  # keyed by the text, so that an edited file is parsed again
def _parse(text: str, name: str) -> ast.Module:
    return ast.parse(text, filename=name)


def _literals(expressions: dict[str, Any]) -> dict[str, Any]:
    return {name: _literal(expression) for name, expression in expressions.items()}


def _literal(expression: ast.expr | None) -> Any:
    if expression is None:
        raise Unreadable("a parameter without a default")
    try:
        return ast.literal_eval(expression)
    except ValueError:
        raise Unreadable(ast.unparse(expression)) from None
