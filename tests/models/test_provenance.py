"""Where a model is from: the hub's id and the licence that its card states."""

from __future__ import annotations

import pytest

from qbench.models.provenance import provenance
from qbench.models.source import ModelSource


def local(folder):
    return ModelSource(str(folder), str(folder), None, True)


def test_the_embedded_model_is_that_of_the_hub():
    facts = provenance(ModelSource("smollm2-135m", "/somewhere", None, True))
    assert facts == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "licence": "apache-2.0",
    }


def test_a_folder_has_the_licence_of_its_card(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert provenance(local(tmp_path)) == {"licence": "mit"}


@pytest.mark.parametrize(
    "card",
    [
        "---\r\nlicense: mit\r\n---\r\n# A model\r\n",
        "---\ntags:\n- a---\nlicense: mit\n---\n# A model\n",
        "---\n# ---------\nlicense: mit\n---\n# A model\n\n---\nlicense: gpl\n---\n",
        "---\nlicense: mit\n---",
        "---\nlicense: mit\n---  \n",
        "\n---\nlicense: mit\n---\n",
        "\ufeff---\nlicense: mit\n---\n",
    ],
)
def test_the_head_of_a_card_is_what_the_hub_takes_for_it(tmp_path, card):
    (tmp_path / "README.md").write_bytes(card.encode())
    assert provenance(local(tmp_path)) == {"licence": "mit"}


def test_a_hub_id_is_the_base_model(monkeypatch):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    source = ModelSource("qwen3-8b", "Qwen/Qwen3-8B", None, False)
    assert provenance(source) == {"base_model": "Qwen/Qwen3-8B"}


@pytest.mark.parametrize(
    "card",
    [
        b"# no head",
        b"# A title\n\n---\nlicense: mit\n---\nA rule above, and one below.\n",
        b"---\nlicense: mit\n# no end\n",
        b"---\nlicense: !!int ''\n---\n",
        b"---\nlicense: !!timestamp mit\n---\n",
        b"---\n[\n---\n",
        b"---\n- a list\n---\n",
        b"---\nlicense: [a, b]\n---\n",
        b"---\nlicense: ''\n---\n",
        b'---\nlicense: "a\\x1b[31m"\n---\n',
        b"---\n\xff\n---\n",
        b"---\n" + b"[" * 5000 + b"\n---\n",
    ],
)
def test_a_card_that_says_nothing_that_can_be_read(tmp_path, card):
    (tmp_path / "README.md").write_bytes(card)
    assert provenance(local(tmp_path)) == {}


def test_a_folder_without_a_card(tmp_path):
    assert provenance(local(tmp_path)) == {}
