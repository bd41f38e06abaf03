"""Tokenizers of folders from elsewhere are tried in a process of their own, once."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest

from qbench.errors import QbenchError, StoreError
from qbench.models import tokenizer_trial
from qbench.models.source import find_model
from qbench.models.tokenizer_trial import try_tokenizer
from qbench.models.tokenizers import load_tokenizer


@pytest.fixture
def folder(tiny_folder, tmp_path, monkeypatch):
    """A copy of the tiny model's folder that a test may damage, and a cache of its own."""
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(tiny_folder, tmp_path / "model")


def change(folder, edit, name="tokenizer.json"):
    content = json.loads((folder / name).read_text())
    edit(content)
    (folder / name).write_text(json.dumps(content))


def endless_pattern(content):
    # Replace has no bound of its own on how often the matcher goes back
    content["normalizer"] = {
        "type": "Replace",
        "pattern": {"Regex": r"(?:(?:a|a)+)+(?:(?:a|aa)+)+(?:(?:a|aa)+)+$"},
        "content": "b",
    }


def long_prefix(content):
    content["normalizer"] = {"type": "Prepend", "prepend": "x" * 10_000_000}
    content["pre_tokenizer"] = {"type": "Split", "pattern": {"String": "x"}, "behavior": "Isolated",
                                "invert": False}  # fmt: skip
    content["model"]["continuing_subword_prefix"] = "y" * 10_000_000


def merges_of_nothing(content):
    content["model"]["merges"] = [["a", "nothing"]]


def no_model(content):
    content["model"] = {"type": "WordLevel", "vocab": {}, "unk_token": "none"}


@pytest.mark.parametrize("edit", [endless_pattern, long_prefix, merges_of_nothing, no_model])
def test_a_tokenizer_that_does_not_work_within_limits_is_refused(folder, edit):
    change(folder, edit)
    with pytest.raises(StoreError, match="the tokenizer in .* cannot be used"):
        try_tokenizer(folder)


@pytest.mark.parametrize("key, value", [("extra_ids", 2**40), ("bos_token", "b" * 2_000_000)])
def test_settings_without_measure_are_refused(folder, key, value):
    change(folder, lambda content: content.update({key: value}), "tokenizer_config.json")
    with pytest.raises(StoreError, match=f"tokenizer_config.json: {key} is l"):
        load_tokenizer(find_model(str(folder)))


def test_a_tokenizer_is_tried_once_per_content(folder, monkeypatch):
    calls = []
    run = subprocess.run
    counted = lambda *args, **settings: calls.append(1) or run(*args, **settings)  # noqa: E731
    monkeypatch.setattr(tokenizer_trial.subprocess, "run", counted)
    for _ in range(3):
        load_tokenizer(find_model(str(folder)))
    assert len(calls) == 1
    change(folder, lambda content: content.update(normalizer={"type": "Lowercase"}))
    load_tokenizer(find_model(str(folder)))
    assert len(calls) == 2


def test_a_panic_of_the_library_is_a_sentence(folder, monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(*_, **__):
        raise PanicException("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", panic)
    with pytest.raises(QbenchError, match="unwrap"):
        load_tokenizer(find_model(str(folder)))
