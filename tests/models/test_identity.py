"""A model is what its files hold: any change of them is another model, and a copy is the same."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from qbench.errors import ModelError
from qbench.models import identity
from qbench.models.identity import content_hash, require_unchanged, resolved_revision
from qbench.models.source import find_model


@pytest.fixture
def folder(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(tiny_folder, tmp_path / "model")


def revision(folder):
    return resolved_revision(find_model(str(folder)))


def flip_a_byte(path):
    """One byte, in place; neither the size nor, afterwards, the time of the file tells."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-20, os.SEEK_END)
        byte = file.read(1)
        file.seek(-20, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("remembered", [0, 1 << 22])
def test_a_changed_file_is_another_model(folder, monkeypatch, name, remembered):
    monkeypatch.setattr(identity, "REMEMBERED", remembered)
    before = revision(folder)
    assert revision(folder) == before
    flip_a_byte(folder / name)
    assert revision(folder) != before


def test_a_new_chat_template_is_another_model_and_a_readme_is_not(folder):
    before = revision(folder)
    (folder / "README.md").write_text("prose")
    (folder / "checkpoint-500").mkdir()
    (folder / "checkpoint-500" / "model.safetensors").write_text("of a training")
    assert revision(folder) == before
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert revision(folder) != before


def test_weights_in_a_folder_inside_count_where_an_index_names_them(folder):
    (folder / "parts").mkdir()
    (folder / "model.safetensors").rename(folder / "parts" / "one.safetensors")
    index = {"weight_map": {"lm_head.weight": "parts/one.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    before = revision(folder)
    flip_a_byte(folder / "parts" / "one.safetensors")
    assert revision(folder) != before


def test_a_folder_that_changes_during_a_run_is_refused(folder):
    source = find_model(str(folder))
    planned = resolved_revision(source)
    require_unchanged(source, planned)
    flip_a_byte(folder / "tokenizer.json")
    with pytest.raises(ModelError, match="have changed since this run was planned"):
        require_unchanged(source, planned)


def test_a_copy_is_the_same_model(folder, tmp_path):
    assert revision(shutil.copytree(folder, tmp_path / "copy")) == revision(folder)


def test_the_hash_of_a_large_file_is_remembered_and_said_once(folder, monkeypatch):
    monkeypatch.setattr(identity, "REMEMBERED", 1)
    monkeypatch.setattr(identity, "ANNOUNCED", 1)
    said = []
    resolved_revision(find_model(str(folder)), said.append)
    assert len(said) == 1 and str(folder) in said[0]
    resolved_revision(find_model(str(folder)), said.append)
    assert len(said) == 1
    monkeypatch.setattr(identity, "sha256", lambda path: pytest.fail(f"{path} is read again"))
    content_hash(folder / "model.safetensors")


def test_a_cache_that_cannot_be_written_costs_time_alone(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "REMEMBERED", 1)
    (tmp_path / "no-folder").write_text("")
    expected = revision(folder)
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "no-folder"))
    assert revision(folder) == expected
