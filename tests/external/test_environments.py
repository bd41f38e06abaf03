"""Environments of other packages: what is there, what is broken, and what installing leaves."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from command_line import run_command
from fake_environments import pretend
from qbench.errors import ConfigError, StoreError
from qbench.external import environments
from qbench.external.contract import Package
from qbench.external.environments import MARK, create, python_of, remove, state
from qbench.external.packages import (
    get_package,
    packages,
    requirements,
    sources,
)
from qbench.registry import external, get_method, method_class


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package without requirements, and an empty folder of environments."""
    monkeypatch.setenv("QBENCH_ENVS", str(tmp_path / "environments"))
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "worker.py").write_text("")
    (tmp_path / "mine.txt").write_text("")
    return Package("mine", "of the tests", "worker.py", folder=tmp_path)


def test_what_is_not_installed_says_how(package):
    present = state(package)
    assert (present.status, present.reason) == ("missing", "run `qbench env create mine`")


def test_requirements_leave_triton_to_torch():
    # Torch asks for one version itself where its build is for GPUs: another pin cannot be met.
    for package in packages().values():
        if not package.unavailable:
            assert "triton" not in requirements(package).read_text(), package.name


def test_an_environment_is_whole_or_broken(package, tmp_path):
    place = pretend(package, tmp_path / "environments")
    assert state(package, measured=True).status == "installed"
    assert state(package, measured=True).nbytes > 0
    (tmp_path / "mine.txt").write_text("numpy==1\n")
    assert "requirements have changed" in state(package).reason
    (tmp_path / "mine.txt").write_text("")
    assert state(package).status == "installed"
    (place / "bin" / "python").unlink()
    assert "interpreter" in state(package).reason
    (place / MARK).write_text("{")
    assert "damaged" in state(package).reason
    (place / MARK).unlink()
    assert "not installed to its end" in state(package).reason
    assert remove(package) and state(package).status == "missing" and not remove(package)


def test_a_failed_installation_is_a_reason_that_stays(package, tmp_path, monkeypatch):
    steps = [
        (sys.executable, "-c", "print('fine')"),
        (sys.executable, "-c", "raise SystemExit('ERROR: no matching distribution')"),
    ]
    monkeypatch.setattr(environments, "_steps", lambda *arguments: steps)
    with pytest.raises(StoreError, match="no matching distribution"):
        create(package)
    present = state(package)
    assert present.status == "failed" and "no matching distribution" in present.reason
    assert not (tmp_path / "environments" / "mine").exists()
    assert "fine" in (tmp_path / "environments" / "mine.log").read_text()


def test_what_cannot_be_run_says_why_and_what_instead(package):
    unavailable = replace(package, name="gone", unavailable="it needs an old torch; take mine")
    assert state(unavailable).reason == "it needs an old torch; take mine"
    with pytest.raises(ConfigError, match="take mine"):
        requirements(unavailable)


def test_an_interpreter_of_another_version_is_looked_for(package):
    assert environments.interpreter(package) == sys.executable
    with pytest.raises(ConfigError, match=r"Python 3\.1 to 3\.2"):
        environments.interpreter(replace(package, python=((3, 1), (3, 2))))


def test_names_of_packages():
    with pytest.raises(ConfigError, match="Did you mean 'gptqmodel'"):
        get_package("gptqmodle")


@pytest.mark.parametrize("name", sorted(packages()))
def test_every_package_is_pinned_or_says_why_not(name):
    package = get_package(name)
    if package.unavailable is not None:
        assert package.worker is None or requirements(package).is_file()
        return
    lines = requirements(package).read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    assert wanted and all("==" in line for line in wanted)
    assert all(path.is_file() for path in sources(package))
    names = {line.partition("==")[0] for line in wanted}
    if name != "gguf":  # which computes with numpy alone
        assert names >= {"torch", "transformers", "tokenizers", "safetensors", "accelerate"}
    assert "numpy" in names


def test_an_environment_that_holds_what_is_asked_for_stays(package, tmp_path):
    place = pretend(package, tmp_path / "environments")
    mark = json.loads((place / MARK).read_text())
    mark["packages"] = ["NumPy==2.4.6", "huggingface_hub==2.4.0", "torch==2.13.0+cpu"]
    (place / MARK).write_text(json.dumps(mark))
    asked = "# what it computes with\ntorch==2.13.0\nnumpy==2.4.6\nhuggingface-hub==2.4.0\n"
    (tmp_path / "mine.txt").write_text(asked)
    assert state(package).status == "installed"
    (tmp_path / "mine.txt").write_text(asked + "numpy==2.4\n")
    assert "numpy==2.4 is not in it" in state(package).reason


@pytest.mark.parametrize("name", sorted(external()))
def test_every_method_declares_what_its_package_offers(name):
    method = get_method(name)
    assert packages()[method.package.name] == method.package
    assert method_class(name).__doc__
    low, high = method.bits
    assert 1 <= low <= high <= 8


@pytest.mark.parametrize("kind", ["file", "link", "link to nothing"])
def test_what_lies_in_the_place_of_an_environment_is_removed(package, tmp_path, kind):
    place = tmp_path / "environments" / "mine"
    place.parent.mkdir()
    if kind == "file":
        place.write_text("")
    else:
        place.symlink_to(tmp_path / ("workers" if kind == "link" else "nothing"))
    assert remove(package) and not place.is_symlink() and not place.exists()
    assert (tmp_path / "workers" / "worker.py").is_file() and not remove(package)


@pytest.mark.slow
def test_an_environment_is_made_from_its_requirements(package):
    made = create(package)
    assert made.status == "installed" and made.nbytes > 1e6
    assert any(line.startswith("pip==") for line in made.installed.packages)
    assert python_of(package).is_file()
    mark = environments.environments() / "mine" / MARK
    assert json.loads(mark.read_text())["seconds"] > 0


def test_the_list_names_every_package(tmp_path, monkeypatch):
    monkeypatch.setenv("QBENCH_ENVS", str(tmp_path))
    done = run_command("env", "list")
    assert done.code == 0 and all(name in done.out for name in packages())
    assert "gguf:q4_k_m" in done.out and "glibc" in done.out
    done = run_command("env", "create", "nothing")
    assert done.code == 2 and "unknown package 'nothing'" in done.err
