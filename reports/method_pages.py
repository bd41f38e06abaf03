"""A page for every method, `methods/NAME.html`: what it is, and its cells."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Sequence
from pathlib import Path

from qbench.declarations import Declaration
from qbench.errors import QbenchError
from qbench.files.atomic import write_text
from qbench.method_source import module_file
from qbench.records import Record
from qbench.registry import declared
from qbench.reports.cell_names import ordered
from qbench.reports.headline import require
from qbench.reports.page import rendered
from qbench.reports.ranking import Column, Row, method_page, ranking

VERBS = {
    "quantize_weight": "the weights alone",
    "quantize_linear": "the second moments of each layer's inputs on calibration text",
    "quantize_block": "each block with its inputs on calibration text",
    "worker_settings": "the model's folder, in its package's own environment",
}


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """`methods/NAME.html` for every method of the records."""
    require(records)
    paths = []
    columns, rows = ranking(records, folder)
    for method in dict.fromkeys(record.cell.method for record in ordered(records)):
        own = [row for row in rows if row.method == method]
        paths.append(write_text(folder / method_page(method), html(method, columns, own)))
    return paths


def html(method: str, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """The page of one method. rows: its own."""
    declaration = _declaration(method)
    return rendered(
        "method.html",
        method=method,
        paper="" if declaration is None else declaration.paper,
        about=[] if declaration is None else _about(declaration),
        text="" if declaration is None else _docstring(declaration),
        columns=columns,
        rows=rows,
    )


def _declaration(method: str) -> Declaration | None:
    """What a method declares; None of one that is not there any more, such as a plug-in's."""
    try:
        return declared(method)
    except QbenchError:
        return None


def _about(declaration: Declaration) -> list[tuple[str, str]]:
    low, high = declaration.bits
    about = [
        ("format", declaration.format),
        ("bits", f"{low} to {high}"),
        ("sees", VERBS[declaration.verb]),
    ]
    for name, default in declaration.parameters.items():
        about.append((name, f"{default} by default"))
    return about


def _docstring(declaration: Declaration) -> str:
    """What the source says of its class; empty of one that is none of our modules."""
    path = module_file(declaration.module) if declaration.module.startswith("qbench.") else None
    if path is None:
        return ""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == declaration.class_name:
            return inspect.cleandoc(ast.get_docstring(node) or "")
    return ""
