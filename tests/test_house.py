"""The rooms: imports point one way, every folder is packaged, reports need no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest

import house
import qbench
from fresh_python import run_python
from places import ROOT

# What each room may import of ours: a folder is a room, and so is a module of qbench's root.
ARROWS = {
    "stats": set(),
    "outside_text": set(),
    "shared_library": set(),
    "errors": {"outside_text"},
    "scheme": {"errors"},
    "contracts": {"errors", "scheme"},
    "records": {"contracts"},
    "environment": {"errors"},
    "isolation": {"errors", "outside_text"},
    "server_end": set(),
    "files": {"errors"},
    "formats": {"contracts", "errors"},
    "embedded": {"errors", "files"},
    "models": {"embedded", "errors", "files"},
    "calibration": {"contracts", "errors", "models"},
    "weight_range": {"contracts", "errors"},
    "declarations": {"contracts", "errors", "weight_range"},
    "method_source": {"contracts", "declarations"},
    "surroundings": {"contracts", "formats"},
    "plugin_sources": {"files"},
    "plugin_file": {"errors", "files", "plugin_sources", "surroundings"},
    "external": {"contracts", "errors", "files"},
    "methods.external": {"external"},
    "methods.external.workers": set(),
    "methods.native": {"shared_library"},
    "registry": {
        "contracts", "declarations", "errors", "external", "method_source", "plugin_file",
        "plugin_sources",
    },
    "checks": {
        "calibration", "contracts", "errors", "formats", "isolation", "kernels", "models",
        "plugin_file", "quantization", "registry", "surroundings",
    },
    "exchange": {"contracts", "errors", "files", "formats"},
    "checkpoint": {
        "contracts", "errors", "exchange", "files", "formats", "kernels", "models", "outside_text",
        "records",
    },
    "verbs": {
        "calibration", "contracts", "errors", "formats", "models", "registry", "weight_range",
    },
    "allocation": set(),
    "sensitivity": {
        "allocation", "calibration", "contracts", "errors", "models", "registry", "scheme",
    },
    "acceptance": {"calibration", "contracts", "errors"},
    "quantization": {
        "acceptance", "calibration", "checkpoint", "contracts", "errors", "exchange", "files",
        "formats", "models", "registry", "sensitivity", "verbs", "weight_range",
    },
    "read_back": {"checkpoint", "errors", "files", "models"},
    "export": {
        "checkpoint", "contracts", "errors", "exchange", "files", "formats", "models", "read_back",
    },
    "serving": {"checkpoint", "contracts", "errors", "formats", "kernels"},
    "publish": {"errors", "files", "models"},
    "inspection": {"checkpoint", "errors", "files"},
    "methods": {"calibration", "contracts", "errors", "formats", "methods.native", "models"},
    "kernels": {"contracts", "errors", "files", "formats", "plugin_file"},
    "kernels.cpu": {
        "contracts", "environment", "errors", "formats", "kernels", "shared_library",
    },
    "kernels.gpu": {"contracts", "errors", "formats", "kernels", "kernels.gpu.cuda"},
    "kernels.gpu.cuda": {"contracts", "errors", "files", "formats", "kernels"},
    "tasks": {"calibration", "errors", "files", "models", "records", "stats"},
    "comparison": {"errors", "files", "outside_text", "records", "stats", "tasks"},
    "reports": {
        "comparison", "declarations", "errors", "files", "method_source", "outside_text",
        "records", "registry", "stats", "tasks",
    },
    "latency": {
        "checkpoint", "contracts", "environment", "errors", "kernels", "kernels.cpu",
        "kernels.gpu", "kernels.gpu.cuda", "models", "quantization", "records",
    },
    "layers": {"calibration", "contracts", "errors", "formats", "models", "stats", "tasks"},
    "experiment": {
        "calibration", "checkpoint", "checks", "comparison", "contracts",
        "environment", "errors", "exchange", "external", "files", "formats", "inspection",
        "isolation", "kernels", "latency", "layers", "method_source", "models", "plugin_file",
        "quantization", "records", "registry", "scheme", "sensitivity", "shared_library", "tasks",
    },
    "executors": {"errors", "experiment", "files", "isolation", "records"},
    "commands": {
        "checks", "comparison", "contracts", "embedded", "environment", "errors", "executors",
        "experiment", "export", "external", "files", "inspection", "isolation", "kernels",
        "latency", "method_source", "methods.native", "models", "outside_text", "plugin_file",
        "plugin_sources", "publish", "records", "registry", "reports", "scheme", "stats", "tasks",
    },
}  # fmt: skip


@pytest.mark.parametrize("module", house.modules())
def test_imports_point_one_way(module):
    own = house.room_of(module)
    others = {house.room_of(name) for name in house.imported_by(module)} - {own}
    assert own == "qbench" or others <= ARROWS[own], f"{own} may not import {others - ARROWS[own]}"


def test_no_arrow_runs_in_a_circle():
    TopologicalSorter(ARROWS).prepare()

    def reach(name, on_the_way):
        assert name not in on_the_way, f"a circle: {' -> '.join([*on_the_way, name])}"
        for other in ARROWS[name]:
            reach(other, [*on_the_way, name])


def test_every_arrow_is_needed():
    assert house.arrows() == ARROWS, "an arrow that no import needs is taken out of ARROWS"


def test_the_picture_shows_the_house_as_it_is():
    rooms, lines = house.drawn()
    needed = {(room, other) for room, all in house.reduced(ARROWS).items() for other in all}
    assert (rooms, lines) == (set(ARROWS), needed), "run `make house`"


def test_a_report_needs_no_torch():
    modules = "qbench.reports.page, qbench.reports.tables, qbench.experiment.store"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr


def test_every_folder_with_code_is_packaged():
    text = (ROOT / "pyproject.toml").read_text()
    packages = {name for name, path in house.modules().items() if path.name == "__init__.py"}
    assert not [name for name in packages if f'"{name}"' not in text]
    assert {name.rpartition(".")[0] for name in house.modules()} - {""} <= packages


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
    lengths = {name: len(path.read_text().splitlines()) for name, path in house.modules().items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


TEST_FILES = sorted((ROOT / "tests").rglob("test_*.py"))
TEST_FOLDERS = sorted({path.parent.name for path in TEST_FILES} - {"tests"})


def test_the_folders_of_tests_are_the_rooms():
    assert set(TEST_FOLDERS) <= ARROWS.keys() | {"benchmarks"}


@pytest.mark.parametrize("folder", TEST_FOLDERS)
def test_the_quick_tier_visits_every_folder_of_tests(folder):
    quick = []
    for path in TEST_FILES:
        if path.parent.name != folder:
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                marks = {ast.unparse(decorator) for decorator in node.decorator_list}
                quick += [] if marks & {"pytest.mark.slow", "pytest.mark.long"} else [node.name]
    assert quick, f"every test in tests/{folder} is marked slow, and make test-quick visits none"


def test_the_readme_lists_every_method():
    from qbench.commands.listing import as_markdown, listing

    assert as_markdown(*listing("methods")) in (ROOT / "README.md").read_text(), (
        "run `python -P -m qbench.commands.listing README.md`"
    )
