"""What the server works out is there in the process of a cell; a file that was edited is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from qbench import method_source, registry
from qbench.experiment import warm
from qbench.experiment.preloaded import MODULES
from qbench.tasks import harness
from qbench.tasks import registry as tasks


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
