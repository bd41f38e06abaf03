"""qbench runs from a plain source tree: not installed, without metadata or compiled files."""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError, version

import pytest

import qbench
from fresh_python import run_python
from places import ROOT

FOLDERS = ("methods", "kernels", "tasks", "reports")  # of the root, that are packages of qbench
# Takes away what an editable installation leaves in a process.
BARE = """
import importlib.metadata as metadata, json, sys

found = metadata.distributions
metadata.distributions = lambda **given: (
    each for each in found(**given) if each.metadata["Name"] != "qbench-llm"
)
named = metadata.Distribution.from_name.__func__

def from_name(kind, name):
    if name == "qbench-llm":
        raise metadata.PackageNotFoundError(name)
    return named(kind, name)

metadata.Distribution.from_name = classmethod(from_name)
sys.meta_path[:] = [each for each in sys.meta_path if "editable" not in repr(each).lower()]
"""
USE = """
import qbench, torch
from transformers import LlamaConfig, LlamaForCausalLM
from qbench.environment import environment
from qbench.commands.listing import listing
from qbench.experiment.grid import PRESETS
from qbench.kernels.registry import broken_kernels
from qbench.reports.page import FOLDER

config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=1)
quantized = qbench.quantize(LlamaForCausalLM(config), "rtn", qbench.Scheme(4, 32))
quantized.save(sys.argv[1])
qbench.load(sys.argv[1])
print(json.dumps({
    "file": qbench.__file__,
    "version": environment()["packages"]["qbench-llm"],
    "tasks": len(listing("tasks")[1]),
    "presets": len(PRESETS),
    "template": all((FOLDER / f"page.{kind}").is_file() for kind in ("html", "css", "js")),
    "broken": broken_kernels(),
}))
"""


@pytest.fixture
def tree(tmp_path):
    """What `make links` makes: qbench, with the folders of the root in it."""
    package = tmp_path / "tree" / "qbench"
    package.mkdir(parents=True)
    for source in [*(ROOT / "qbench").iterdir(), *(ROOT / name for name in FOLDERS)]:
        (package / source.name).symlink_to(source)
    return package.parent


@pytest.mark.slow
def test_a_model_is_quantized_and_saved_from_a_plain_tree(tree, tmp_path):
    script = tmp_path / "bare.py"
    script.write_text(BARE + USE)
    done = run_python(
        script, tmp_path / "saved", env=os.environ | {"PYTHONPATH": str(tree)}, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["file"].startswith(str(tree)) and told["version"] == qbench.__version__
    assert told["tasks"] > 3 and told["presets"] and told["template"] and not told["broken"]
    assert f"qbench {qbench.__version__}" in (tmp_path / "saved" / "README.md").read_text()


def test_the_version_is_that_of_the_package():
    try:
        installed = version("qbench-llm")
    except PackageNotFoundError:
        pytest.skip("qbench is not installed here")
    assert qbench.__version__ == installed
