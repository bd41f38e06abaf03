"""Files of tensors that cannot be had."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from qbench.errors import StoreError
from qbench.files import shards, written_folder
from qbench.files.shards import INDEX, Shards


def test_a_file_that_memory_has_no_room_for_is_named(tmp_path, monkeypatch):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")

    def full(*_, **__):
        raise RuntimeError("unable to mmap 16 bytes: Cannot allocate memory (12)")

    monkeypatch.setattr(shards, "safe_open", full)
    with pytest.raises(StoreError, match=r"model.safetensors cannot be read: unable to mmap"):
        Shards(tmp_path).tensor("a")


@pytest.fixture
def written(tmp_path):
    """A folder of ours beside another one, which nothing of it may name."""
    for name in ("other", "model"):
        folder = tmp_path / name
        folder.mkdir()
        tensors = {"a": torch.zeros(2), "b": torch.ones(3)}
        written_folder.write_index(folder, written_folder.write_shards(folder, tensors, limit=9))
    return folder


@pytest.mark.parametrize(
    "change, problem",
    [
        (lambda names: "model.safetensors", "has no weight_map"),
        (lambda names: [*names], "has no weight_map"),
        (lambda names: {}, "has no weight_map"),
        (lambda names: None, "has no weight_map"),
        (lambda names: names | {"a": 5}, "names the file 5"),
        (lambda names: names | {"a": "../other/" + names["a"]}, "names the file '../other/"),
        (lambda names: names | {"a": "absent.safetensors"}, "absent.safetensors"),
        (lambda names: names | {"c": names["a"]}, "tensor 'c' is missing, unexpected"),
        (lambda names: names | {"a": names["b"]}, "tensor 'a' is missing, unexpected"),
        (lambda names: {"a": names["a"]}, "names no tensor of model-0000"),
    ],
)
def test_an_index_whose_map_is_not_that_of_its_files_is_told(written, change, problem):
    assert set(written_folder.verify(written).values()) == {None}
    index = json.loads((written / INDEX).read_text())
    index["weight_map"] = change(index["weight_map"])
    (written / INDEX).write_text(json.dumps(index))
    problems = {
        name: text for name, text in written_folder.verify(written).items() if text is not None
    }
    assert problems.keys() == {INDEX} and problem in problems[INDEX]


def test_an_index_without_a_map_is_told_by_the_command(written, command):
    index = json.loads((written / INDEX).read_text())
    del index["weight_map"]
    (written / INDEX).write_text(json.dumps(index))
    code, text, said = command("verify", written)
    assert code == 1 and not said and f"FAIL  {INDEX}  " in text and text.count("ok ") == 2
