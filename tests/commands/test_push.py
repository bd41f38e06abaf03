"""`qbench push`: dry by default, in one commit with --yes, and never with a damaged file."""

from __future__ import annotations

import json
import re

import pytest

import qbench
from qbench import Scheme
from qbench.errors import ConfigError, StoreError
from qbench.publish import plan_upload, upload

FACTS = {"base_model": "somebody/model", "licence": "mit"}


class Hub:
    """In the place of huggingface_hub's API: it keeps what it is called with."""

    def __init__(self, failure=None):
        self.failure = failure
        self.made = []
        self.files = {}

    def create_repo(self, repository, private, exist_ok):
        if self.failure:
            raise self.failure
        self.made.append((repository, private, exist_ok))
        return f"https://hub.invalid/{repository}"

    def create_commit(self, repository, operations, commit_message):
        for operation in operations:
            with operation.as_file() as file:
                self.files[operation.path_in_repo] = file.read()


@pytest.fixture
def folder(tiny, tmp_path):
    quantized = qbench.quantize(tiny(), "rtn", Scheme(3, 16))
    quantized.manifest |= FACTS
    path = quantized.save(tmp_path / "saved")
    (path / ".eval_results").mkdir()
    (path / ".eval_results" / "arc_easy.yaml").write_text("[]\n")
    metrics = [{"name": "arc_easy acc", "type": "acc", "value": 0.5}]
    state_in_card(path, [{"name": "m", "results": [{"metrics": metrics}]}])
    return path


def state_in_card(folder, index):
    """Put a model-index into the card."""
    card = folder / "README.md"
    line = f"model-index: {json.dumps(index)}\n"
    card.write_text(card.read_text().replace("---\n", f"---\n{line}", 1))


def test_without_yes_it_lists_and_sends_nothing(folder, command, monkeypatch):
    hub = Hub(AssertionError("the hub was asked"))
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    done = command("push", folder, "me/model")
    assert done.code == 0 and "nothing was sent" in done.out and not done.err
    for name in ("model.safetensors", "config.json", "README.md", ".eval_results/arc_easy.yaml"):
        assert name in done.out
    assert "base_model: somebody/model" in done.out and "license: mit" in done.out


@pytest.mark.parametrize("licence", ["a\nb: c", " ", "mit\x1b[0m", "-mit", "m" * 200])
def test_a_licence_is_a_name(folder, command, licence):
    code, out, err = command("push", folder, "me/model", f"--licence={licence}")
    assert (code, out) == (2, "") and "is no name of a licence on the hub" in err
    assert err.count("\n") == 1 and "\x1b" not in err


def test_a_private_repository_is_said_to_be_one(folder, command):
    done = command("push", folder, "me/model", "--private")
    assert "--yes uploads this to the private repository me/model" in done.out


def test_with_yes_every_file_goes_as_it_is(folder, command, monkeypatch):
    hub = Hub()
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: hub)
    done = command("push", folder, "me/model", "--yes", "--private")
    assert done.code == 0 and "https://hub.invalid/me/model" in done.out
    assert hub.made == [("me/model", True, True)]
    own = [path for path in folder.rglob("*") if path.is_file()]
    assert hub.files == {str(path.relative_to(folder)): path.read_bytes() for path in own}


def test_a_licence_and_a_base_model_that_are_named_are_in_the_card_that_goes(folder):
    hub = Hub()
    before = (folder / "README.md").read_text()
    upload(plan_upload(folder, "me/model", "apache-2.0", "other/base"), api=hub)
    card = hub.files["README.md"].decode()
    assert "license: apache-2.0" in card and "base_model: other/base" in card
    assert card.partition("\n# ")[2] == before.partition("\n# ")[2]
    assert (folder / "README.md").read_text() == before


def test_a_card_of_another_editor_keeps_its_one_head(folder):
    path, hub = folder / "README.md", Hub()
    path.write_bytes(path.read_text().replace("\n", "\r\n").encode("utf-8-sig"))
    upload(plan_upload(folder, "me/model", licence="apache-2.0"), api=hub)
    card = hub.files["README.md"].decode()
    assert card.startswith("---") and card.count("license:") == card.count("library_name:") == 1
    assert "license: apache-2.0" in card


@pytest.mark.parametrize("head", ["license: [mit", "a: !!binary x", "when: 2026-13-45"])
def test_a_card_whose_head_is_no_yaml_gets_no_licence_beside_it(folder, command, head):
    (folder / "README.md").write_text(f"---\n{head}\n---\n# m\n")
    (path,) = folder.glob(".eval_results/*")
    path.unlink()
    done = command("push", folder, "me/model", "--licence=mit")
    assert (done.code, done.out) == (2, "")
    assert "the lines between --- at its head are no YAML; correct them, or remove" in done.err
    assert command("push", folder, "me/model").code == 0


def test_what_the_card_lacks_is_said(tiny, tmp_path, command):
    folder = qbench.quantize(tiny(), "rtn", Scheme(3, 16)).save(tmp_path / "s")
    done = command("push", folder, "me/model")
    assert done.code == 0
    assert "names no licence; give --licence" in done.err
    assert "names no base-model; give --base-model" in done.err


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/", "me/mo del", "../x"])
def test_a_name_that_is_none_of_the_hub_s_is_refused(folder, name):
    with pytest.raises(ConfigError, match="is no name of the hub; give OWNER/NAME"):
        plan_upload(folder, name)


@pytest.mark.parametrize("index", [[1], 5, "x", {"name": "x"}, [{"results": None}], [{}]])
def test_a_model_index_that_is_none_is_refused(folder, command, index):
    text = (folder / "README.md").read_text()
    (folder / "README.md").write_text(re.sub("model-index: .*\n", "", text))
    state_in_card(folder, index)
    code, out, err = command("push", folder, "me/model")
    assert (code, out) == (2, "") and "its model-index is no list of entries" in err


def test_results_are_those_of_the_card_and_no_links(folder, tmp_path):
    results = folder / ".eval_results"
    (results / "own.yaml").write_text("secret")
    with pytest.raises(StoreError, match="own.yaml is of no task that the model-index of README"):
        plan_upload(folder, "me/model")
    (results / "own.yaml").rename(tmp_path / "arc_easy.yaml")
    (results / "arc_easy.yaml").unlink()
    (results / "arc_easy.yaml").symlink_to(tmp_path / "arc_easy.yaml")
    with pytest.raises(StoreError, match="arc_easy.yaml is a link or in one"):
        plan_upload(folder, "me/model")
    (results / "arc_easy.yaml").unlink()
    results.rmdir()
    results.symlink_to(tmp_path)
    with pytest.raises(StoreError, match="arc_easy.yaml is a link or in one"):
        plan_upload(folder, "me/model")


def test_a_damaged_or_added_file_is_refused(folder):
    (folder / "config.json").write_text("{}")
    with pytest.raises(StoreError, match=r"config\.json differs from the hash"):
        plan_upload(folder, "me/model")


def test_a_folder_of_somebody_else_is_refused(tiny_folder):
    with pytest.raises(StoreError, match="cannot be read, as it is missing"):
        plan_upload(tiny_folder, "me/model")


def test_a_refusal_of_the_hub_is_one_sentence(folder, command, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Hub(OSError("no route")))
    done = command("push", folder, "me/model", "--yes")
    assert done.code == 2 and "me/model cannot be written: OSError: no route" in done.err
    assert "Traceback" not in done.err
