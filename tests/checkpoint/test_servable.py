"""Folders that a server would compute with in part, or in another way: refused by name."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file, save_file

import qbench
from families import FAMILIES, family_model
from qbench import Scheme
from qbench.checkpoint.servable import require_servable
from qbench.errors import ConfigError, StoreError
from qbench.files.shards import INDEX
from qbench.models.blocks import quantizable
from qbench.scheme import LayerRule


def drop(folder, name):
    """Take a tensor out of the file, and the index with it."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / INDEX).unlink()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.up_proj.scale",
        "model.layers.1.mlp.up_proj.zero_point",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.input_layernorm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    ],
)
def test_a_tensor_that_is_missing_is_named(tiny, tmp_path, name, tied):
    model = tiny(attention_bias=True, tie_word_embeddings=tied)
    folder = qbench.quantize(model, "rtn", Scheme(4, 16)).save(tmp_path / "saved")
    require_servable(str(folder))
    if tied and name == "lm_head.weight":
        return
    drop(folder, name)
    with pytest.raises(StoreError, match=f"{name}( is|'.*) missing|missing .*{name}"):
        require_servable(str(folder))


def test_layers_that_the_files_do_not_have_are_named(tiny, tmp_path):
    folder = qbench.quantize(tiny(), "rtn", Scheme(4, 16)).save(tmp_path / "saved")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(StoreError, match=r"missing .'model.layers.2"):
        require_servable(str(folder))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    require_servable(str(folder))  # weights that a server finds elsewhere are not looked at


def test_experts_are_refused(tmp_path):
    model = family_model(*FAMILIES["mixtral-experts"])
    folder = qbench.quantize(model, "rtn", Scheme(4, 16)).save(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"layers\.0\.mlp\.experts holds experts, and vLLM"):
        require_servable(str(folder))


def test_dense_layers_are_served_but_for_those_that_are_read_transposed(tiny, tmp_path):
    for model, refused in ((tiny(), False), (family_model(*FAMILIES["gpt2-conv1d"]), True)):
        first = next(iter(quantizable(model)))
        scheme = Scheme(4, 16, rules=(LayerRule.parse(f"{first}=skip"),))
        folder = qbench.quantize(model, "rtn", scheme).save(tmp_path / type(model).__name__)
        if not refused:
            require_servable(str(folder))
            continue
        with pytest.raises(ConfigError, match=f"{first} is in full precision, and vLLM reads"):
            require_servable(str(folder))


def test_of_a_model_of_the_hub_the_config_is_looked_at(tmp_path, monkeypatch):
    """Its files, which the server fetches later, may not be here yet."""
    snapshots = tmp_path / "models--an--owner-s" / "snapshots"
    commits = {"llama": "0" * 40, "mixtral-experts": "1" * 40}
    for family, commit in commits.items():
        model = family_model(*FAMILIES[family])
        saved = qbench.quantize(model, "rtn", Scheme(4, 16)).save(tmp_path / family)
        (snapshots / commit).mkdir(parents=True)
        (snapshots / commit / "config.json").write_text((saved / "config.json").read_text())
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path))
    require_servable("an/owner-s", commits["llama"])
    with pytest.raises(ConfigError, match="holds experts, and vLLM"):
        require_servable("an/owner-s", commits["mixtral-experts"])
