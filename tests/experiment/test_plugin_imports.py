"""What a plug-in does on import: what runs is what is hashed, and nothing else changes."""

from __future__ import annotations

import os
import py_compile
import signal
import sys
import warnings
from collections.abc import Iterator

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaMLP

import qbench.formats
from qbench.errors import ConfigError
from qbench.plugin_file import import_plugin_file

PATCH = "import qbench.formats\nqbench.formats.bits_per_weight = lambda weights: {'total': 1.0}"
PATCH_MODEL = """
from transformers.models.llama import modeling_llama
modeling_llama.LlamaMLP.forward = lambda self, x: x
"""
CHANGES = {
    "bits": (PATCH, "qbench.formats.bits_per_weight replaced"),
    "model": (PATCH_MODEL, "class transformers.models.llama.modeling_llama.LlamaMLP.forward"),
    "dtype": ("import torch; torch.set_default_dtype(torch.float64)", "the default dtype from"),
    "threads": ("import torch; torch.set_num_threads(7)", "the number of threads from"),
    "grad": ("import torch; torch.set_grad_enabled(False)", "the grad mode from True to False"),
    "seed": ("import torch; torch.manual_seed(1)", "take a torch.Generator with a seed"),
    "folder": ("import os; os.chdir('/')", "the working directory from"),
    "variable": ("import os; os.environ['QBENCH_OF_A_PLUGIN'] = '1'", "QBENCH_OF_A_PLUGIN"),
    "signal": ("import signal; signal.signal(2, signal.SIG_IGN)", "signal handlers SIGINT"),
    "mask": ("import os; os.umask(0o777)", "the mask of new files from"),
    "logging": ("import logging; logging.disable(50)", "the level of logging from"),
    "warnings": ("import warnings; warnings.simplefilter('error')", "the filters of all warnings"),
    "beside": ("import changing_beside", "QBENCH_OF_A_PLUGIN"),
}
HONEST = """
import scipy.linalg, scipy.optimize, sklearn.cluster
import os, logging, warnings, torch, torch.nn.functional as F
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP
from transformers import AutoModelForCausalLM
try:
    import a_package_that_nobody_has
except ImportError:
    pass

logging.getLogger(__name__).setLevel(logging.DEBUG)
LEVELS = torch.randn(4, generator=torch.Generator().manual_seed(0))
warnings.filterwarnings("ignore", message="of ours")

@torch.compile(backend="eager")
def doubled(x):
    return 2 * x

class Own(Qwen2MLP):
    def forward(self, x):
        return x
"""


@pytest.fixture
def undone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What everybody shares is afterwards as it was before."""
    monkeypatch.setattr(qbench.formats, "bits_per_weight", qbench.formats.bits_per_weight)
    monkeypatch.setattr(LlamaMLP, "forward", LlamaMLP.forward)
    monkeypatch.delenv("QBENCH_OF_A_PLUGIN", raising=False)
    monkeypatch.setattr("logging.root.manager.disable", 0)
    monkeypatch.chdir(".")
    mask = os.umask(0o022)
    os.umask(mask)
    handler = signal.getsignal(signal.SIGINT)
    threads = torch.get_num_threads()
    modules = set(sys.modules)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        yield
    os.umask(mask)
    signal.signal(signal.SIGINT, handler)
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    for name in set(sys.modules) - modules:
        if name.endswith("beside"):
            del sys.modules[name]


@pytest.mark.parametrize("kind", CHANGES)
def test_what_changes_everything_on_import_is_refused(kind, tmp_path, undone):
    statement, words = CHANGES[kind]
    (tmp_path / "changing_beside.py").write_text(CHANGES["variable"][0])
    (tmp_path / "changing.py").write_text(statement)
    with pytest.raises(
        ConfigError, match=r"changing\.py' changes on import what everybody"
    ) as raised:
        import_plugin_file(tmp_path / "changing.py")
    assert words in str(raised.value)


@pytest.mark.slow
def test_what_packages_do_on_import_is_not_the_plugins_doing(tmp_path):
    (tmp_path / "honest.py").write_text(HONEST)
    module = import_plugin_file(tmp_path / "honest.py")
    assert module.doubled(torch.ones(2)).tolist() == [2, 2]


@pytest.mark.parametrize("name", ["stale_beside", "stale_plugin"])
def test_what_runs_is_the_text_that_is_there(name, tmp_path):
    plugin, other = tmp_path / "stale_plugin.py", tmp_path / "stale_beside.py"
    plugin.write_text("import stale_beside as other\nOWN = 1\n")
    other.write_text("OWN = 1\n")
    edited = tmp_path / f"{name}.py"
    before = edited.stat()
    py_compile.compile(str(edited))
    module = import_plugin_file(plugin)
    edited.write_text(edited.read_text().replace("1", "2"))
    os.utime(edited, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert module.OWN == module.other.OWN == 1
    module = import_plugin_file(plugin)
    assert {"stale_beside": module.other, "stale_plugin": module}[name].OWN == 2
    del sys.modules["stale_beside"]


def test_a_module_that_the_identity_does_not_know_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "in_a_folder.py").write_text("")
    plugin = tmp_path / "through_the_path.py"
    plugin.write_text(
        f"import sys\nsys.path.insert(0, {str(tmp_path / 'lib')!r})\nimport in_a_folder"
    )
    with pytest.raises(ConfigError, match=r"lib/in_a_folder\.py', of which its identity"):
        import_plugin_file(plugin)
    plugin.write_text("import lib.in_a_folder")
    assert import_plugin_file(plugin).lib.in_a_folder.__file__
    for name in ("in_a_folder", "lib", "lib.in_a_folder"):
        sys.modules.pop(name, None)


def test_packages_of_an_environment_below_the_folder_are_not_the_plugins(tmp_path, monkeypatch):
    packages = tmp_path / "env" / "lib"
    packages.mkdir(parents=True)
    (packages / "lazily_installed.py").write_text("")
    monkeypatch.syspath_prepend(str(packages))
    plugin = tmp_path / "beside_an_environment.py"
    plugin.write_text("if True:\n    import lazily_installed")
    assert import_plugin_file(plugin).lazily_installed.__file__
    del sys.modules["lazily_installed"]


@pytest.mark.parametrize("raised", ["GeneratorExit('no')", "SystemExit(0)"])
def test_whatever_a_plugin_raises_names_it(raised, tmp_path):
    (tmp_path / "raising.py").write_text(f"def late():\n    raise {raised}\nlate()")
    with pytest.raises(ConfigError, match=r"raising\.py' raised \w+ on import"):
        import_plugin_file(tmp_path / "raising.py")


def test_ctrl_c_during_an_import_interrupts(tmp_path):
    (tmp_path / "waiting.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in range(10**9): pass"
    )
    with pytest.raises(KeyboardInterrupt):
        import_plugin_file(tmp_path / "waiting.py")


LATE = """
def factor():
    from late_helper import FACTOR
    import late_parts.inner
    return FACTOR, late_parts.inner.factor()

def helper():
    import late_helper
    return late_helper
"""

INNER = """
def factor():
    from . import late
    return late.FACTOR * {}
"""


def test_each_plugin_gets_what_is_beside_it_whenever_it_imports(tmp_path):
    plugins = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        (folder / "late_parts").mkdir(parents=True)
        (folder / "late_helper.py").write_text(
            f"def factor():\n    import late_own\n    return late_own.FACTOR\nFACTOR = {number}"
        )
        (folder / "late_own.py").write_text(f"FACTOR = {number}")
        (folder / "late_parts" / "inner.py").write_text(INNER.format(number))
        (folder / "late_parts" / "late.py").write_text(f"FACTOR = {number}")
        (folder / "late_plugin.py").write_text(LATE)
        plugins.append(import_plugin_file(folder / "late_plugin.py"))
    helpers = [plugin.helper() for plugin in plugins]
    for _ in range(2):
        for number, (plugin, helper) in enumerate(zip(plugins, helpers, strict=True), 1):
            assert plugin.factor() == (number, number**2)
            assert plugin.helper() is helper, "its module is executed once"
    assert [helper.factor() for helper in helpers] == [1, 2]
    for name in ("late_helper", "late_own", "late_parts", "late_parts.inner", "late_parts.late"):
        sys.modules.pop(name, None)
