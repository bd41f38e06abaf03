"""The rooms: imports point one way, every folder is packaged, reports need no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qbench

ROOT = Path(__file__).resolve().parents[1]
TOP = ("methods", "kernels", "tasks", "reports")  # folders of the root that are packages of qbench
ARROWS = {  # what each room may import of ours: a folder is a room, and so is a module of qbench's root
    "errors": set(),
    "contracts": {"errors"},
    "records": {"contracts"},
    "environment": set(),
    "files": {"errors"},
    "formats": {"contracts", "errors"},
    "models": {"errors"},
    "calibration": {"contracts", "errors", "models"},
    "registry": {"contracts", "errors"},
    "checks": {"contracts", "errors", "formats", "registry"},
    "exchange": {"contracts", "errors", "files", "formats"},
    "checkpoint": {
        "contracts", "errors", "exchange", "files", "formats", "kernels", "models", "records",
    },
    "quantization": {
        "calibration", "checkpoint", "contracts", "errors", "formats", "models", "registry",
    },
    "export": {"checkpoint", "errors", "exchange", "formats"},
    "inspection": {"checkpoint", "errors", "files"},
    "methods": {"calibration", "contracts", "errors", "formats", "models"},
    "kernels": {"contracts", "errors", "formats", "kernels.cpu", "kernels.gpu"},
    "kernels.cpu": {"contracts", "errors", "formats", "kernels"},
    "kernels.gpu": {"contracts", "errors", "files", "formats", "kernels"},
    "tasks": {"calibration", "errors", "files", "records"},
    "reports": {"errors", "files", "records", "tasks"},
    "latency": {
        "contracts", "environment", "errors", "formats", "kernels", "kernels.cpu", "kernels.gpu",
        "quantization",
    },
    "experiment": {
        "calibration", "checkpoint", "contracts", "environment", "errors", "files", "models",
        "quantization", "records", "registry", "tasks",
    },
    "commands": {
        "calibration", "checks", "contracts", "environment", "errors", "experiment", "export",
        "files", "inspection", "kernels", "kernels.gpu", "latency", "models", "records", "registry",
        "reports", "tasks",
    },
    "qbench": {"contracts", "quantization", "registry"},
}  # fmt: skip


def modules():
    """Every module of ours by its dotted name."""
    paths = sorted(path for top in ("qbench", *TOP) for path in (ROOT / top).rglob("*.py"))
    return {dotted(path): path for path in paths}


def dotted(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "qbench" else ("qbench", *parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = modules()


def room(module):
    """The folder that a module stands in; a module of the root is its own room."""
    folder = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    return (module if folder == "qbench" else folder).removeprefix("qbench.")


def imported(module):
    """The modules of ours that a module imports, anywhere in its text."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            source = absolute(module, node)
            names = [source, *(f"{source}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name in MODULES and name != "qbench")


def absolute(module, node):
    """What `from X import ...` means by X, also where X begins with dots."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    return ".".join(part for part in (package if node.level else "", node.module or "") if part)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module):
    own = room(module)
    others = {room(name) for name in imported(module)} - {own}
    assert others <= ARROWS[own], f"{own} may not import {sorted(others - ARROWS[own])}"


def test_no_arrow_runs_in_a_circle():
    def reach(name, on_the_way):
        assert name not in on_the_way, f"a circle: {' -> '.join([*on_the_way, name])}"
        for other in ARROWS[name] - {"kernels"}:
            reach(other, [*on_the_way, name])

    for name in ARROWS:
        reach(name, [])


def test_a_report_needs_no_torch():
    code = "import sys, qbench.reports.page, qbench.reports.tables, qbench.experiment.store; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_every_folder_with_code_is_packaged():
    text = (ROOT / "pyproject.toml").read_text()
    packages = {name for name, path in MODULES.items() if path.name == "__init__.py"}
    assert not [name for name in packages if f'"{name}"' not in text]
    assert {name.rpartition(".")[0] for name in MODULES} - {""} <= packages


def test_the_repository_root_is_not_importable():
    code = "import methods"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={"PATH": ""}
    )
    assert "this folder is the package qbench.methods" in found.stderr


def test_public_names():
    assert all(hasattr(qbench, name) for name in qbench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        qbench.nothing  # noqa: B018


def test_modules_stay_small():
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_the_readme_lists_every_method():
    from qbench.commands.listing import as_markdown, listing

    assert as_markdown(*listing("methods")) in (ROOT / "README.md").read_text(), (
        "run `qbench list methods --markdown`"
    )
