"""Plug-ins: files and entry points, whole or broken."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

import qbench
from qbench import registry
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


@pytest.fixture(autouse=True)
def no_plugins_left(monkeypatch):
    monkeypatch.setattr(registry, "_plugins", {})


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


def test_a_plugin_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="is not a file; give the path of a Python file"):
        registry.load_plugin(tmp_path / "none.py")


def test_broken_entry_points_are_listed_and_the_others_work(monkeypatch):
    points = [
        EntryPoint("absent", "no_such_module:X", "qbench.methods"),
        EntryPoint("rtn", "qbench.methods.rtn:RTN", "qbench.methods"),
        EntryPoint("mine", "qbench.methods.rtn:RTN", "qbench.methods"),
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    found = registry.methods()
    assert "ModuleNotFoundError" in found["absent"].reason
    assert found["rtn (qbench.methods.rtn:RTN)"].reason == "the name 'rtn' is already taken"
    assert found["mine"] is found["rtn"]
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
    assert read == ["gptq.py", "rtn.py"]
