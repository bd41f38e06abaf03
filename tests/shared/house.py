"""The rooms of the house, read from the imports: for the tests, and as the picture that opens
ARCHITECTURE.md.

A room is a folder with code; a module of qbench's root is a room of its own. `make house` draws the
rooms, each above all that it imports, without the arrows that follow from others (A -> C where
A -> B -> C).
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path
from xml.etree import ElementTree

from places import ROOT

PICTURE = ROOT / "tests" / "house.svg"
TOP = ("methods", "kernels", "tasks", "reports")  # folders of the root that are packages of qbench
FACES = ("qbench", "qbench.__main__")  # hand on what is in the rooms, and are none
Arrows = Mapping[str, set[str]]


@cache
def modules() -> dict[str, Path]:
    """Every module of ours by its dotted name."""
    paths = sorted(path for top in ("qbench", *TOP) for path in (ROOT / top).rglob("*.py"))
    return {dotted_name(path): path for path in paths}


def dotted_name(path: Path) -> str:
    """`qbench.kernels.cpu.products` for kernels/cpu/products.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "qbench" else ("qbench", *parts)
    return ".".join(parts).removesuffix(".__init__")


def package_of(module: str) -> str:
    """The package that a module stands in; a package stands in itself."""
    if modules()[module].name == "__init__.py":
        return module
    return module.rpartition(".")[0]


def room_of(module: str) -> str:
    """The room of a module, without the leading `qbench.`; of a face `qbench`."""
    if module in FACES:
        return "qbench"
    package = package_of(module)
    return (module if package == "qbench" else package).removeprefix("qbench.")


def imported_by(module: str) -> Iterator[str]:
    """The modules of ours that a module imports, anywhere in its text, also by relative imports."""
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            source = _absolute(module, node)
            names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name in modules() and name != "qbench")


def _absolute(module: str, node: ast.ImportFrom) -> str:
    """What `from X import ...` means by X, where X may begin with dots."""
    if not node.level:
        return node.module or ""
    package = package_of(module)
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return f"{package}.{node.module}" if node.module else package


@cache
def arrows() -> dict[str, set[str]]:
    """Which rooms each room imports, as the code has it."""
    rooms: dict[str, set[str]] = {}
    for module in modules():
        if module in FACES:
            continue
        others = rooms.setdefault(room_of(module), set())
        others |= {room_of(name) for name in imported_by(module)} - {room_of(module)}
    return rooms


def reduced(rooms: Arrows) -> dict[str, set[str]]:
    """The arrows that do not follow from others. graphlib.CycleError where rooms form a circle."""
    below: dict[str, set[str]] = {}
    kept: dict[str, set[str]] = {}
    for room in TopologicalSorter(rooms).static_order():
        implied = set[str]().union(*(below[other] for other in rooms[room]))
        below[room] = rooms[room] | implied
        kept[room] = rooms[room] - implied
    return kept


def caption(room: str) -> str:
    """The first words of the room's docstring, up to its first colon or full stop."""
    text = ast.get_docstring(ast.parse(modules()[f"qbench.{room}"].read_text())) or ""
    words = " ".join(text.split())
    return re.split(r"[.:;](?: |$)", words)[0]


def dot(rooms: Arrows) -> str:
    """The picture in Graphviz's language: a box for each room, an arrow where none follows."""
    lines = [
        "digraph house {",
        'node [shape=box, style="rounded,filled", color="#40464f", fontname=sans];',
        'edge [color="#8a8f98", arrowsize=0.6];',
        'bgcolor="#fcfcfb"; nodesep=0.15; ranksep=0.35;',
    ]
    for room in sorted(rooms):
        words = "<br/>".join(map(escape, textwrap.wrap(caption(room), 30)))
        label = f'<b>{escape(room)}</b><br/><font point-size="10">{words}</font>'
        fill = "#e8eef7" if room.split(".")[0] in TOP else "white"
        lines.append(f'"{room}" [label=<{label}>, fillcolor="{fill}"];')
    for room, others in sorted(reduced(rooms).items()):
        lines += [f'"{room}" -> "{other}";' for other in sorted(others)]
    return "\n".join([*lines, "}"])


def drawn() -> tuple[set[str], set[tuple[str, str]]]:
    """The rooms and the arrows of the picture as it is stored."""
    rooms: set[str] = set()
    lines: set[tuple[str, str]] = set()
    for group in ElementTree.parse(PICTURE).iter("{http://www.w3.org/2000/svg}g"):
        title = group.findtext("{http://www.w3.org/2000/svg}title") or ""
        if group.get("class") == "node":
            rooms.add(title)
        elif group.get("class") == "edge":
            start, _, end = title.partition("->")
            lines.add((start, end))
    return rooms, lines


def draw() -> None:
    """Write the picture; needs Graphviz's `dot`."""
    if shutil.which("dot") is None:
        raise SystemExit("`dot` is not installed; it is in the package `graphviz` of most systems")
    source = dot(arrows())
    picture = subprocess.run(
        ["dot", "-Tsvg"], input=source, text=True, capture_output=True, check=True
    )
    PICTURE.write_text(picture.stdout)
    rooms, lines = drawn()
    total = sum(map(len, arrows().values()))
    print(f"{PICTURE.name}: {len(rooms)} rooms, {total} arrows, {len(lines)} of them drawn")


if __name__ == "__main__":
    draw()
