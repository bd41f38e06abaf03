"""Tokenizers are held against the model, and what they put around a text is known."""

from __future__ import annotations

import copy
import json
import shutil

import pytest
from tokenizers.processors import TemplateProcessing
from torch import nn

from qbench.checkpoint.skeleton import read_tokenizer
from qbench.errors import ModelError
from qbench.models.source import ModelSource, find_model
from qbench.models.tokenizers import (
    check_fit,
    load_tokenizer,
    save_tokenizer,
    surroundings,
    without_ending,
)
from qbench.tasks.beginnings import trained_bos, with_bos


def around(tokenizer, before, after):
    """A copy of the tokenizer that puts these tokens around a text."""
    own = copy.deepcopy(tokenizer)
    tokens = [*before, *after]
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*[f"{token}:0" for token in before], "$A:0", *[f"{token}:0" for token in after]],
        pair="$A:0 $B:1",
        special_tokens=[(token, own.convert_tokens_to_ids(token)) for token in tokens],
    )
    return own


@pytest.mark.parametrize("before", [[], ["<bot>"]])
def test_an_ending_is_taken_off_and_the_beginning_stays(tokenizer, before):
    ending = around(tokenizer, before, ["</s>"])
    ids = ending.convert_tokens_to_ids(before)
    assert surroundings(ending) == (ids, [257])
    own = without_ending(ending)
    assert own("ab")["input_ids"] == ids + tokenizer("ab")["input_ids"]
    assert ending("ab")["input_ids"][-1] == 257, "the tokenizer itself is left as it was"


def test_a_tokenizer_without_an_ending_is_itself(tokenizer):
    assert without_ending(tokenizer) is tokenizer


class Model:
    """Only an embedding of so many rows."""

    def __init__(self, rows):
        self.embedding = nn.Embedding(rows, 4)

    def get_input_embeddings(self):
        return self.embedding


def test_a_tokenizer_of_another_model_is_refused(tokenizer):
    check_fit(Model(259), tokenizer, "the model")
    check_fit(Model(258), tokenizer, "the model")  # its pad token alone lies beyond
    with pytest.raises(ModelError, match="token id 257, and the embedding of the model ends at 99"):
        check_fit(Model(100), tokenizer, "the model")
    with pytest.raises(ModelError, match="the model has no tokenizer; copy tokenizer.json"):
        check_fit(Model(259), None, "the model")


def test_a_setting_of_the_wrong_kind_is_said(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": {"a": 1}}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_tokenizer(find_model(str(folder)))


def test_no_tokenizer_is_invented(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="has no tokenizer"):
        load_tokenizer(find_model(str(folder)))


# --- whether a text begins with BOS, by the word of the settings


@pytest.fixture
def silent_folder(tokenizer, tmp_path):
    """A saved tokenizer with the BOS of Llama, which it puts nowhere."""
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"bos_token": "<s>"})
    own.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def say(folder, word):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"add_bos_token": word}))
    return folder


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize(("word", "begins"), [(None, True), (False, False), (True, True)])
def test_settings_that_want_no_bos_are_heeded_also_when_saved(
    silent_folder, tmp_path, family, word, begins
):
    if word is not None:
        say(silent_folder, word)
    given = load_tokenizer(find_model(str(silent_folder)))
    save_tokenizer(given, tmp_path / "saved")
    for own in (given, read_tokenizer(tmp_path / "saved")):
        bos = [own.bos_token_id] if begins else []
        bare = own("ab", add_special_tokens=False)["input_ids"]
        assert with_bos(own, family)("ab")["input_ids"] == bos + bare


def test_settings_of_the_hub_that_want_no_bos_are_heeded(silent_folder, tmp_path, monkeypatch):
    repository = tmp_path / "models--a--b"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123")
    shutil.copytree(say(silent_folder, False), repository / "snapshots" / "0123")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    given = ModelSource("a/b", "a/b", None, False)
    own = copy.deepcopy(load_tokenizer(ModelSource("c", str(silent_folder), None, True)))
    own.init_kwargs.pop("add_bos_token")
    monkeypatch.setattr("qbench.models.tokenizers.from_transformers", lambda *_: own)
    assert trained_bos(load_tokenizer(given), "llama") is None
