"""Plug-ins: files and entry points, whole or broken."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest

import qbench
from qbench import method_source, registry
from qbench.commands.variants import read_variant
from qbench.declarations import declaration_of
from qbench.errors import ConfigError

VARIANT = """
from dataclasses import dataclass
from qbench.methods.rtn import RTN

@dataclass(frozen=True)
class Variant(RTN):
    name = "{name}"
    paper = "ours"
    ratios: int = 4
"""


COMPLETE = """
from dataclasses import dataclass
from typing import ClassVar
import qbench

@dataclass(frozen=True)
class Mine:
    name: ClassVar[str] = "mine"
    paper: ClassVar[str] = "ours"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = False
    strength: float = 1.0

    def quantize_weight(self, weight, scheme):
        return qbench.get_method("rtn").quantize_weight(weight, scheme)
"""


@pytest.fixture(autouse=True)
def nothing_left():
    """Every test begins with, and leaves, a registry that is read anew."""
    registry.read_anew()
    yield
    registry.read_anew()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder whose files are read as if they stood in methods/."""
    import qbench.methods

    folder = tmp_path / "methods"
    folder.mkdir()
    monkeypatch.setattr(qbench.methods, "__path__", [str(folder), *qbench.methods.__path__])
    real = method_source.module_file

    def module_file(module):
        file = folder / f"{module.rpartition('.')[2]}.py"
        return file if file.is_file() else real(module)

    for place in (method_source, registry):
        monkeypatch.setattr(place, "module_file", module_file)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(folder)):
            del sys.modules[name]


def write(tmp_path, text, name="variant.py"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_plugin_file_is_a_method(tmp_path):
    path = write(tmp_path, VARIANT.format(name="rtn-coarse"))
    assert registry.load_plugin(path) == ["rtn-coarse"]
    assert registry.load_plugin(path) == ["rtn-coarse"], "loading it twice is loading it once"
    assert qbench.get_method("rtn-coarse").ratios == 4
    edited = registry.source_hash(registry.method_class("rtn-coarse"))
    path.write_text(VARIANT.format(name="rtn-coarse") + "# edited\n")
    assert registry.source_hash(registry.method_class("rtn-coarse")) != edited


@pytest.mark.parametrize(
    "text, message",
    [
        ("raise RuntimeError('no GPU')", "raised RuntimeError on import: no GPU"),
        ("def f(: pass", "raised SyntaxError on import"),
        (
            "x = 1",
            "defines no method: a dataclass that declares name, paper, format, bits, symmetric",
        ),
        (VARIANT.format(name="rtn"), "defines method 'rtn', which exists; choose another name"),
    ],
)
def test_broken_plugin_files(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        registry.load_plugin(write(tmp_path, text))


@pytest.mark.parametrize(
    "default, fault",
    [
        ("enum.Enum('Mode', 'A').A", "x=<Mode.A: 1>"),
        ("frozenset({'a'})", "x=frozenset"),
        ("np.float64(0.5)", "x=np.float64(0.5)"),
        ("np.int64(3)", "x=np.int64(3)"),
        ("object()", "x=<object object"),
        ("float('nan')", "x=nan"),
        ("len", "x=<built-in function len>"),
        ("(1, [2])", "x=(1, [2])"),
        ("field(default_factory=dict)", "'x' without a plain default"),
        ("field()", "'x' without a plain default"),
        ("field(default=3, init=False)", "'x', which has init=False"),
    ],
)
def test_a_parameter_that_no_record_can_have_is_refused(default, fault, tmp_path):
    imports = "import enum\nimport numpy as np\nfrom dataclasses import KW_ONLY, field\n"
    text = f"{imports}{VARIANT.format(name='odd')}    _: KW_ONLY\n    x: object = {default}\n"
    with pytest.raises(ConfigError) as raised:
        registry.load_plugin(write(tmp_path, text))
    assert f".py has the hyper-parameter {fault}" in str(raised.value)


def test_a_plugin_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="is not a file; give the path of a Python file"):
        registry.load_plugin(tmp_path / "none.py")


def test_broken_entry_points_are_listed_and_the_others_work(tmp_path, monkeypatch):
    points = [
        EntryPoint("absent", "no_such_module:X", "qbench.methods"),
        EntryPoint("rtn", "qbench.methods.rtn:RTN", "qbench.methods"),
        EntryPoint("coarse", "qbench.methods.rtn:RTN", "qbench.methods"),
        EntryPoint("mine", "installed_method:Variant", "qbench.methods"),
    ]
    write(tmp_path, VARIANT.format(name="mine"), "installed_method.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "installed_method", raising=False)
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    found = registry.methods()
    assert "ModuleNotFoundError" in found["absent"].reason
    assert found["rtn (qbench.methods.rtn:RTN)"].reason == (
        "qbench.methods.rtn:RTN defines method 'rtn', which methods/rtn.py defines already; "
        "choose another name"
    )
    assert found["mine"].name == "mine"
    # Results, ids and files of the class would be those of rtn.
    with pytest.raises(ConfigError, match="declares name='rtn'; it must be that of its entry poi"):
        read_variant("coarse")
    with pytest.raises(
        ConfigError,
        match="method 'absent' from no_such_module:X cannot be used: ModuleNotFoundError",
    ):
        qbench.get_method("absent")


def test_the_source_hash_covers_what_a_method_borrows(monkeypatch):
    from pathlib import Path

    real, read = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda path: (read.append(path.name), real(path))[1])
    registry.source_hash(registry.method_class("gptq"))
    ours = {"gptq.py", "dynamic_groups.py", "error_feedback.py", "grids.py", "rtn.py"}
    assert ours | {"__init__.py", "loops.py", "loops.c", "loops.h"} == set(read)


def test_the_folder_and_the_entry_points_are_read_once(monkeypatch):
    reads = []
    monkeypatch.setattr(registry, "entry_points", lambda group: reads.append(group) or [])
    for _ in range(3):
        qbench.get_method("rtn")
        registry.methods()
    assert reads == ["qbench.methods"]


@pytest.mark.parametrize("name", registry.declarations())
def test_what_is_read_from_the_source_is_what_the_class_declares(name):
    declaration = registry.declared(name)
    assert declaration.cls is None, "our own files are read without importing them"
    cls = declaration.load()
    assert declaration == declaration_of(cls, declaration.file)
    assert list(declaration.parameters.items()) == list(registry.parameters(cls).items())


def test_the_parameters_of_training_are_read_from_the_source():
    from qbench.calibration.reconstruction import Reconstruction

    shared = method_source.read_parameters("qbench.calibration.reconstruction", "Reconstruction")
    assert shared == registry.parameters(Reconstruction)


def test_names_are_known_without_torch():
    code = """if True:
        import sys
        from qbench.registry import declarations, declared
        assert declared("gptq").bits == (2, 8) and len(declarations()) >= 12
        assert not {"torch", "transformers", "numpy"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("def f(: pass", r"SyntaxError: .*own.py, line 1"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("from qbench.formats import Uniformm", "ImportError: cannot import name 'Uniformm'"),
        ("raise RuntimeError('no GPU')", "RuntimeError: no GPU"),
    ],
)
def test_a_broken_file_of_the_folder_is_listed_and_the_others_work(folder, text, reason):
    from qbench.commands.listing import listing

    write(folder, text, "own.py")
    broken = registry.declarations()["own"]
    assert broken.origin == "methods/own.py"
    assert re.search(reason, broken.reason)
    assert registry.methods()["own"] == broken and registry.declared("rtn").name == "rtn"
    assert ("own", "broken") in [row[:2] for row in listing("methods")[1]]
    with pytest.raises(ConfigError, match="method 'own' from methods/own.py cannot be used"):
        qbench.get_method("own")


def test_a_file_of_the_folder_is_a_method(folder):
    write(folder, COMPLETE, "own.py")
    assert registry.declared("mine").cls is None
    assert qbench.get_method("mine", strength="2").strength == 2


def test_a_file_that_fails_only_when_imported_says_so_when_it_is_used(folder):
    write(folder, COMPLETE.replace("qbench.get", "get") + "LIMIT = undefined\n", "own.py")
    with pytest.raises(ConfigError, match="method 'mine' from methods/own.py cannot be used: Name"):
        qbench.get_method("mine")
    assert "undefined" in registry.methods()["mine"].reason


def test_two_files_with_one_name(folder, tmp_path):
    write(folder, COMPLETE, "first.py")
    write(folder, COMPLETE, "second.py")
    assert registry.declared("mine").file == "methods/first.py"
    assert registry.declarations()["mine (methods/second.py)"].reason == (
        "methods/second.py defines method 'mine', which methods/first.py defines already; "
        "choose another name"
    )
    with pytest.raises(
        ConfigError, match=r"plugin.py' defines method 'mine', .* than that of methods/first.py"
    ):
        registry.load_plugin(write(tmp_path, COMPLETE, "plugin.py"))


def test_two_plugins_with_one_name(tmp_path):
    registry.load_plugin(write(tmp_path, COMPLETE, "first.py"))
    with pytest.raises(ConfigError, match=r"second.py' defines method 'mine', .*first.py"):
        registry.load_plugin(write(tmp_path, COMPLETE, "second.py"))
    twice = COMPLETE + COMPLETE.replace("class Mine", "class Other")
    with pytest.raises(ConfigError, match="third.py' defines method 'third' twice"):
        registry.load_plugin(write(tmp_path, twice.replace('"mine"', '"third"'), "third.py"))


WRONG = [
    (
        COMPLETE.replace('    paper: ClassVar[str] = "ours"\n', ""),
        "class Mine of .* lacks paper; a method declares name, paper, format, bits, symmetric",
    ),
    (
        COMPLETE.replace('    name: ClassVar[str] = "mine"\n', ""),
        "class Mine of .* lacks name; a method declares",
    ),
    (
        COMPLETE.replace("def quantize_weight", "def quantise_weight"),
        "method 'mine' implements none of quantize_weight, quantize_linear, quantize_block",
    ),
    (
        COMPLETE.replace("name: ClassVar[str]", "name: str"),
        "class Mine of .* has 'name' as a hyper-parameter; declare it as ClassVar",
    ),
    (
        COMPLETE.replace("bits: ClassVar[tuple[int, int]]", "bits: tuple[int, int]"),
        "class Mine of .* has 'bits' as a hyper-parameter; declare it as ClassVar",
    ),
    (COMPLETE.replace("(2, 8)", "4"), r"class Mine of .* declares bits=4; give the lowest and the"),
    (COMPLETE.replace('"uniform"', "7"), "class Mine of .* declares format=7; it must be a str"),
    (
        COMPLETE.replace("strength", "trains: ClassVar[bool] = True\n    strength"),
        "class Mine of .* declares that it trains and lacks epochs, batch_size, training_tokens",
    ),
    (COMPLETE.replace('"mine"', '"../mine"'), "class Mine of .* has the name '../mine', which is"),
    (COMPLETE.replace('"mine"', '"mi|ne"'), "class Mine of .* has the name 'mi.ne', which is no"),
    (COMPLETE.replace('"mine"', '"mi ne"'), "class Mine of .* has the name 'mi ne', which is no"),
    (COMPLETE.replace('"mine"', '"mi:ne"'), "class Mine of .* has the name 'mi:ne', which is no"),
    (COMPLETE.replace('"mine"', '""'), "class Mine of .* has the name '', which is no"),
]


def test_methods_of_other_packages_have_the_packages_name_in_front():
    assert {"gptqmodel:gptq", "gguf:q4_k_m"} <= registry.external().keys()


@pytest.mark.parametrize("text, message", WRONG)
def test_what_a_method_lacks_is_named_in_a_plugin(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        registry.load_plugin(write(tmp_path, text))
    assert "mine" not in registry.declarations()


@pytest.mark.parametrize("text, message", WRONG)
def test_what_a_method_lacks_is_named_in_the_folder(folder, text, message):
    write(folder, text, "own.py")
    with pytest.raises(ConfigError, match=f"method 'own' from methods/own.py.*{message}"):
        qbench.get_method("own")


@pytest.mark.parametrize("text, message", WRONG)
def test_what_a_method_lacks_is_named_for_an_entry_point(tmp_path, monkeypatch, text, message):
    write(tmp_path, text, "installed_method.py")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "installed_method", raising=False)
    points = [EntryPoint("theirs", "installed_method:Mine", "qbench.methods")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    with pytest.raises(ConfigError, match=f"method 'theirs' from installed_method.*{message}"):
        qbench.get_method("theirs")


def test_a_base_class_of_a_plugin_may_be_incomplete(tmp_path):
    base = COMPLETE.replace("class Mine", "class Shared").replace(
        '    name: ClassVar[str] = "mine"\n', ""
    )
    derived = """
@dataclass(frozen=True)
class First(Shared):
    name: ClassVar[str] = "first"

@dataclass(frozen=True)
class Second(Shared):
    name: ClassVar[str] = "second"
"""
    assert registry.load_plugin(write(tmp_path, base + derived)) == ["first", "second"]
