"""The rooms: imports point one way, every folder is packaged, reports need no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qbench

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"methods": "methods", "kernels": "kernels", "tasks": "tasks", "reports": "reports"}
FOUNDATION = {"qbench.errors", "qbench.contracts", "qbench.records"}
MAY_IMPORT = {  # what each room may import of ours, besides itself and the foundation
    "methods": {"qbench.formats", "qbench.calibration.reconstruction", "qbench.calibration.folding", "qbench.calibration.walk", "qbench.models.blocks"},
    "qbench.calibration.reconstruction": {"qbench.models.blocks"},
    "qbench.calibration.folding": {"qbench.models.blocks"},
    "kernels": {"qbench.formats"},
    "tasks": set(),
    "reports": set(),
    "qbench.exchange": {"qbench.formats", "qbench.files.shards"},
    "qbench.formats": set(),
    "qbench.contracts": set(),
    "qbench.errors": set(),
    "qbench.records": set(),
    "qbench.models.blocks": set(),
    "qbench.experiment.store": set(),
}


def sources():
    for path in sorted(ROOT.glob("*/**/*.py")):
        part = path.relative_to(ROOT).parts
        if part[0] in ("qbench", *ROOMS) and not path.name.startswith("."):
            yield path, room(path)


def room(path):
    part = path.relative_to(ROOT).with_suffix("").parts
    if part[0] in ROOMS:
        return part[0]
    return ".".join(part[:2])


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            if node.module == "qbench":
                yield from (f"qbench.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("path, name", [pytest.param(p, r, id=str(p.relative_to(ROOT))) for p, r in sources()])
def test_imports_point_one_way(path, name):
    ours = {module for module in imported(path) if module.startswith("qbench.")}
    if name not in ("qbench.commands.main", "qbench.experiment.runner"):
        assert not {m for m in ours if m in ("qbench.commands.main", "qbench.experiment.runner")}, "nothing imports the cli or the runner"
    if name not in MAY_IMPORT:
        return
    own = f"qbench.{name}" if name in ROOMS else name
    allowed = MAY_IMPORT[name] | FOUNDATION | {own}
    assert not {m for m in ours if not any(m == a or m.startswith(f"{a}.") for a in allowed)}


def test_a_report_needs_no_torch():
    code = "import sys, qbench.reports.page, qbench.reports.tables, qbench.experiment.store; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_every_folder_with_code_is_packaged():
    text = (ROOT / "pyproject.toml").read_text()
    for folder in {path.parent for path, _ in sources()}:
        name = ".".join(folder.relative_to(ROOT).parts)
        assert f'"{name if name.startswith("qbench") else f"qbench.{name}"}"' in text, f"{name} is not in packages"


def test_the_repository_root_is_not_importable():
    code = "import methods"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={"PATH": ""})
    assert "this folder is the package qbench.methods" in found.stderr


def test_public_names():
    assert all(hasattr(qbench, name) for name in qbench.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        qbench.nothing  # noqa: B018


def test_modules_stay_small():
    assert {str(p): n for p, _ in sources() if (n := len(p.read_text().splitlines())) > 350} == {}


def test_the_readme_lists_every_method():
    from qbench.commands.listing import as_markdown, listing

    assert as_markdown(*listing("methods")) in (ROOT / "README.md").read_text(), "run `qbench list methods --markdown`"
