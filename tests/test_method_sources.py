"""A method is another one where what it builds on changes, however it comes by that."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import house
from qbench.registry import declarations, load_plugin, method_class, source_hash

BODY = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Mine:
    name: ClassVar[str] = "NAME"
    paper: ClassVar[str] = ""
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True

    def quantize_weight(self, weight, scheme):
        return base().quantize_weight(weight, scheme)
"""
BESIDE = "import sys\nsys.path.insert(0, __file__.rpartition('/')[0])\n"
RTN = "from qbench.methods.rtn import RTN\ndef base(): return RTN()\n"
WAYS = {
    "at the top": RTN,
    "in a function": "def base():\n    from qbench.methods.rtn import RTN\n    return RTN()\n",
    "dotted": "import qbench.methods.rtn\ndef base(): return qbench.methods.rtn.RTN()\n",
    "renamed": "import qbench.methods.rtn as other\ndef base(): return other.RTN()\n",
    "the module": "from qbench.methods import rtn\ndef base(): return rtn.RTN()\n",
    "through another method": "def base():\n    from qbench.methods.rtn_h import RTNH\n",
    "the package": "import qbench\ndef base(): return qbench.get_method('rtn')\n",
    "the package's name": "from qbench import get_method\ndef base(): return get_method('rtn')\n",
    "the registry": "from qbench.registry import get_method as made\n"
    "def base(): return made('rtn')\n",
    "the room": "from qbench import methods\ndef base(): return methods.rtn.RTN()\n",
    "a literal": "from importlib import import_module\n"
    "def base(): return import_module('qbench.methods.rtn').RTN()\n",
}
BORROWED = {
    "imported": f"{BESIDE}from borrowed_BESIDE import base\n",
    "imported late": f"{BESIDE}def base():\n    import borrowed_BESIDE\n",
    "imported by a literal": f"{BESIDE}import importlib\n"
    "base = importlib.import_module('borrowed_BESIDE').base\n",
    "run": "import runpy\nfrom pathlib import Path\n"
    "base = runpy.run_path(Path(__file__).parent / 'borrowed_BESIDE.py')['base']\n",
}


def edit(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let every file of this name read as if it had a line more."""
    real = Path.read_bytes
    more = {name: b"\n# edited\n"}
    monkeypatch.setattr(Path, "read_bytes", lambda path: real(path) + more.get(path.name, b""))


def plug_in(path: Path, text: str) -> type:
    path.write_text(text + BODY.replace("NAME", path.stem))
    load_plugin(path)
    return method_class(path.stem)


@pytest.mark.parametrize("way", WAYS)
def test_a_plugin_is_what_it_builds_on(way, tmp_path, monkeypatch):
    cls = plug_in(tmp_path / f"builds-{list(WAYS).index(way)}.py", WAYS[way])
    before = source_hash(cls)
    edit(monkeypatch, "rtn.py")
    assert source_hash(cls) != before


@pytest.mark.parametrize("way", BORROWED)
def test_a_plugin_is_what_the_files_beside_it_build_on(way, tmp_path, monkeypatch):
    number = list(BORROWED).index(way)
    (tmp_path / f"borrowed_{number}.py").write_text(RTN)
    text = BORROWED[way].replace("BESIDE", str(number))
    cls = plug_in(tmp_path / f"borrows-{number}.py", text)
    before = source_hash(cls)
    edit(monkeypatch, "rtn.py")
    assert source_hash(cls) != before


def test_a_constant_of_another_file_is_built_on(tmp_path, monkeypatch):
    cls = plug_in(tmp_path / "of-a-constant.py", "from qbench.methods.grids import TINY\n")
    before = source_hash(cls)
    edit(monkeypatch, "grids.py")
    assert source_hash(cls) != before


def test_what_a_plugin_does_not_import_is_not_part_of_it(tmp_path, monkeypatch):
    text = "from qbench import Scheme\nfrom qbench.contracts import LinearStats\n"
    cls = plug_in(tmp_path / "alone.py", f"{text}from qbench.methods.grids import TINY\n")
    before = source_hash(cls)
    for name in ("rtn.py", "registry.py", "contracts.py", "walk.py"):
        edit(monkeypatch, name)
        assert source_hash(cls) == before


def test_a_method_of_ours_is_all_that_it_imports_of_methods(monkeypatch):
    real = Path.read_bytes
    read: set[Path] = set()
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.add(path.resolve()) or real(path))
    for entry in declarations().values():
        if not entry.module.startswith("qbench.methods."):
            continue
        read.clear()
        source_hash(method_class(entry.name))
        needed = {entry.module}
        waiting = [entry.module]
        while waiting:
            imported = set(house.imported_by(waiting.pop())) - needed
            new = {name for name in imported if name.startswith("qbench.methods.")}
            needed |= new
            waiting += new
        assert {house.modules()[name] for name in needed} <= read, entry.name


def test_each_of_two_plugins_has_what_is_beside_it(tmp_path):
    classes = {}
    for folder in ("first", "second", "first"):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "of_one_name.py").write_text(f"def base(): return {folder!r}\n")
        text = "from of_one_name import base\nfirst = base()\n"
        classes[folder] = plug_in(place / f"beside-{folder}.py", text)
    for folder, cls in classes.items():
        assert sys.modules[cls.__module__].first == folder
