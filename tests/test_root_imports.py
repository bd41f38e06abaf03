"""Python started in the repository's root, where our folders could be taken for packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "methods", "reports", "tasks")
LOADING = "from transformers import AutoModelForCausalLM, PreTrainedModel\n"


def python(*words, text=None, cwd=ROOT):
    """Plain Python in the root; raises where it ends in a traceback."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=environment,
        input=text,
        check=True,
        capture_output=True,
        text=True,
    )


def absent(name):
    """Code that fails unless the package of this name is as good as not there."""
    return f"""
import importlib, importlib.util
assert importlib.util.find_spec({name!r}) is None
try:
    import {name}
except ModuleNotFoundError as error:
    assert error.name == {name!r} and str(error) == "No module named {name!r}", error
else:
    raise AssertionError("{name} was imported")
"""


@pytest.mark.parametrize("name", FOLDERS)
def test_after_qbench_the_folders_are_absent(name):
    python("-c", "import qbench\n" + absent(name))


@pytest.mark.slow
def test_transformers_loads_after_qbench():
    python("-c", "import qbench\n" + LOADING + absent("kernels"))


@pytest.mark.slow
def test_transformers_loads_before_qbench():
    code = LOADING + "import qbench\n" + absent("kernels") + "import qbench.kernels.registry"
    python("-c", code)


def test_a_script_in_the_root_and_one_that_is_piped(tmp_path):
    code = "import qbench\n" + absent("kernels") + absent("methods")
    python("-", text=code)
    script = tmp_path / "script.py"
    script.write_text(f"import sys\nsys.path[0] = {str(ROOT)!r}\n" + code)
    python(script)


def test_a_notebook_in_the_root():
    code = "import sys\nsys.path.insert(0, '')\nimport qbench\nassert '' not in sys.path\n"
    python("-P", "-c", code + absent("kernels") + absent("tasks"))


def test_the_readmes_imports_elsewhere_are_left_alone(tmp_path):
    (tmp_path / "kernels.py").write_text("MINE = True\n")
    python("-c", "import qbench, kernels\nassert kernels.MINE", cwd=tmp_path)


@pytest.mark.parametrize(
    "module", ["methods.rtn", "kernels.registry", "tasks.data", "reports.page"]
)
@pytest.mark.parametrize("before", ["", "import qbench"])
def test_no_module_is_imported_twice(module, before):
    code = f"{before}\ntry:\n    import {module}\nexcept ModuleNotFoundError: pass\n"
    python("-c", code + "else: raise AssertionError('imported')")


def test_a_folder_that_is_taken_for_a_package_says_what_it_is():
    with pytest.raises(subprocess.CalledProcessError) as failure:
        python("-c", "import methods")
    assert "this folder is the package qbench.methods" in failure.value.stderr
