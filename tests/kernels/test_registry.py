"""Kernels are found: files of the folder, entry points, plug-in files; what is broken is named."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.metadata import EntryPoint

import pytest
import torch

from qbench.errors import ConfigError
from qbench.kernels import registry
from qbench.kernels.contract import Kernel, Request
from qbench.kernels.registry import all_kernels, broken_kernels, choose, load_plugin

REQUEST = Request("uniform", 3, 32, (40, 64), "cpu", torch.float32, 1)
OURS = ["cuda", "cpu-binary", "cpu-binary-fast", "cuda-fast", "rotated", "triton", "dequantized"]
PLUGIN = """
    from qbench.kernels.contract import Kernel
    from qbench.kernels.description import weight_from

    def run(x, parts, bias, description):
        return x @ weight_from(parts, description).dequantize().to(x.dtype).T

    KERNEL = Kernel("mine", run, formats=("uniform",){more})
"""


@pytest.fixture
def anew(monkeypatch):
    """Kernels are looked for again, inside the test and after it."""
    monkeypatch.setattr(registry, "_known", None)
    monkeypatch.setattr(registry, "_broken", {})
    monkeypatch.setattr(registry, "_origins", {})
    choose.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    choose.cache_clear()


@pytest.fixture
def plugin(tmp_path):
    def write(more="", name="mine.py"):
        path = tmp_path / name
        path.write_text(textwrap.dedent(PLUGIN.format(more=more)))
        return path

    return write


def test_our_kernels_are_found_once_by_priority(anew):
    assert list(all_kernels()) == OURS and broken_kernels() == {}
    looked = []
    anew.setattr(registry, "_discover", lambda: looked.append(1))
    assert list(all_kernels()) == OURS and not looked


@pytest.mark.slow
def test_finding_kernels_does_not_import_triton():
    code = "import sys; from qbench.kernels.registry import all_kernels; all_kernels()"
    code += "; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_a_file_in_the_folder_is_found_and_a_broken_one_is_named(anew, tmp_path, plugin):
    import qbench.kernels as package

    plugin(name="folder_kernel.py")
    (tmp_path / "folder_syntax.py").write_text("def run(:\n")
    (tmp_path / "folder_raises.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "folder_plain.py").write_text("NUMBER = 1\n")
    anew.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert set(all_kernels()) == {*OURS, "mine"}
    broken = broken_kernels()
    assert broken.keys() == {"qbench.kernels.folder_syntax", "qbench.kernels.folder_raises"}
    assert broken["qbench.kernels.folder_syntax"].startswith("SyntaxError: ")
    assert "no_such_package_at_all" in broken["qbench.kernels.folder_raises"]


def test_entry_points(anew, tmp_path):
    (tmp_path / "foreign_kernels.py").write_text(
        textwrap.dedent(PLUGIN.format(more="")) + "TAKEN = Kernel('triton', run)\nNUMBER = 1\n"
    )
    anew.syspath_prepend(tmp_path)

    def points(group):
        assert group == "qbench.kernels"
        values = ("foreign_kernels:KERNEL", "foreign_kernels:TAKEN", "foreign_kernels:NUMBER")
        values += ("foreign_kernels:missing", "no_such_module")
        return [EntryPoint(f"point{n}", value, group) for n, value in enumerate(values)]

    anew.setattr(registry, "entry_points", points)
    assert set(all_kernels()) == {*OURS, "mine"}
    reasons = broken_kernels()
    assert "'triton' is already taken" in reasons["point1 (foreign_kernels:TAKEN)"]
    assert "point2 (foreign_kernels:NUMBER)" in reasons
    assert "AttributeError" in reasons["point3 (foreign_kernels:missing)"]
    assert "ModuleNotFoundError" in reasons["point4 (no_such_module)"]


def test_a_plugin_file(anew, plugin):
    path = plugin()
    assert load_plugin(path) == ["mine"] == load_plugin(path)
    assert all_kernels()["mine"].formats == ("uniform",)
    other = plugin(name="other.py")
    with pytest.raises(ConfigError, match="defines kernel 'mine', which exists"):
        load_plugin(other)


@pytest.mark.parametrize("name", ["../mine", "my kernel", "a|b", ""])
def test_a_name_that_is_no_part_of_a_path_is_refused(anew, plugin, name):
    path = plugin()
    path.write_text(path.read_text().replace("'mine'", repr(name)).replace('"mine"', repr(name)))
    with pytest.raises(
        ConfigError, match="a kernel of plug-in .* has the name .* not a plain name"
    ):
        load_plugin(path)
    assert name not in all_kernels()


def test_a_plugin_is_chosen_automatically_only_where_it_says_so(anew, plugin):
    load_plugin(plugin(", priority=99"))
    assert choose(REQUEST).name != "mine" and choose(REQUEST, "mine").name == "mine"
    load_plugin(plugin(", priority=99, automatic=True"))
    assert choose(REQUEST).name == "mine"
    assert choose(REQUEST._replace(format="dense")).name == "dequantized"


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "is not a file; give the path of a Python file that defines methods or kernels"),
        ("1 / 0", "raised ZeroDivisionError on import"),
        ("NUMBER = 1", "defines no kernel"),
    ],
)
def test_a_plugin_that_is_none(anew, tmp_path, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_plugin(path)


def test_a_kernel_whose_declaration_raises_stops_no_other(anew):
    def available():
        raise OSError("no driver")

    run = all_kernels()["dequantized"].run
    kernel = Kernel("broken", run, automatic=True, priority=99, available=available)
    registry.register(kernel)
    request = REQUEST._replace(format="dense")
    assert choose(request).name == "dequantized"
    assert kernel.refusal(request) == "it raised OSError: no driver"
