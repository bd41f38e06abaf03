"""What the server works out is there in the process of a cell; a file that was edited is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench import isolation, method_source, registry
from qbench.errors import ConfigError
from qbench.experiment import warm
from qbench.experiment.preloaded import CHECKS, MODULES
from qbench.tasks import harness
from qbench.tasks import registry as tasks
from tiny_runs import run_args

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar

from qbench.methods.rtn import RTN


@dataclass(frozen=True)
class Watched(RTN):
    name: ClassVar[str] = "watched"
"""


def test_what_every_cell_reads_has_been_read():
    assert warm.__name__ in MODULES
    for kept in (method_source._parse, harness._settings):
        kept.cache_clear()
    warm._warm()
    before = [method_source._parse.cache_info().misses, harness._settings.cache_info().misses]
    assert min(before) >= 10
    registry.read_anew()
    assert "gptq" in registry.declarations() and tasks._own_tasks()
    after = [method_source._parse.cache_info().misses, harness._settings.cache_info().misses]
    assert after == before


def test_the_table_of_renamed_weights_is_made(monkeypatch):
    mapping = pytest.importorskip("transformers.conversion_mapping")
    monkeypatch.setattr(mapping, "_checkpoint_conversion_mapping_cache", None)
    warm._warm()
    assert mapping._checkpoint_conversion_mapping_cache


def test_settings_of_a_task_that_were_edited_are_read_again(tmp_path):
    text = (Path(tasks.__file__).parent / "arc_easy.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert harness.read_task(path).num_fewshot == 0
    path.write_text(text.replace("num_fewshot: 0", "num_fewshot: 1"))
    assert harness.read_task(path).num_fewshot == 1


@pytest.fixture
def asked(monkeypatch):
    """What the server is asked for when it starts, which ends the command."""
    modules = []

    def start(*names):
        modules.extend(names)
        raise ConfigError("that will do")

    monkeypatch.setattr(isolation, "preload", start)
    return modules


def test_the_checks_of_a_gate_start_the_server_of_its_cells(command, asked, tiny_folder):
    done = command("regress", "gptq", "--base", "rtn", "--model", tiny_folder, "--data", "mini")
    assert "that will do" in done.err and {*MODULES, *CHECKS} <= set(asked)


@pytest.mark.parametrize("plugin", [True, False])
def test_a_watch_on_methods_of_others_is_imported_once(
    command, asked, tiny_folder, tmp_path, plugin
):
    path = tmp_path / "watched.py"
    path.write_text(PLUGIN)
    extra = ("--plugin", path) if plugin else ()
    done = command(*run_args(tiny_folder, tmp_path / "run", "rtn", "4", extra))
    assert "that will do" in done.err and set(MODULES) <= set(asked)
    assert set(CHECKS).isdisjoint(asked) != plugin
