"""Models are loaded whole or refused, and nothing of a folder is executed."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qbench.checkpoint.paged import open_paged
from qbench.errors import ModelError, QbenchError, StoreError
from qbench.models.loading import load_model
from qbench.models.source import ModelSource, find_model
from qbench.quantization import quantize, read_model

PROMPT = torch.arange(12)[None]


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny model's folder that a test may damage."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


def rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder):
    return load_model(find_model(str(folder)), "float32")


def lose_a_layer(tensors):
    for name in [name for name in tensors if "layers.1.mlp" in name]:
        del tensors[name]


def cut_a_matrix(tensors):
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:7].contiguous()


def spoil(name):
    def change(tensors):
        tensors[name].view(-1)[3] = float("nan")

    return change


@pytest.mark.parametrize("read", [load, lambda folder: open_paged(find_model(folder), "float32")])
def test_codes_of_which_the_config_says_nothing_are_no_weights(folder, read):
    def to_float8(tensors):
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    rewrite(folder, to_float8)
    with pytest.raises(StoreError, match="up_proj.weight .torch.float8_e4m3fn., part of a quant"):
        read(str(folder))


def index_of_others(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({name: -tensor for name, tensor in tensors.items()}, folder / "x.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "x.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def other_name(folder):
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")


def other_weights(folder):
    config = json.loads((folder / "config.json").read_text())
    shutil.copy(folder / "model.safetensors", folder / "x.safetensors")
    (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "x"}))


def adapter(folder):
    (folder / "adapter_config.json").write_text("{}")


@pytest.mark.parametrize("read", [load, lambda folder: open_paged(find_model(folder), "float32")])
@pytest.mark.parametrize(
    "change, message",
    [
        (
            index_of_others,
            r"two models, .*\(x.safetensors\), .*: remove model.safetensors, or else",
        ),
        (other_name, "holds consolidated.safetensors, and neither .*; rename the file"),
        (other_weights, "states transformers_weights='x', which only .*; remove it"),
        (adapter, "holds adapter_config.json, of weights that are added .* or remove the adapter"),
    ],
)
def test_whole_or_in_blocks_the_same_files_are_read(folder, read, change, message):
    change(folder)
    with pytest.raises(StoreError, match=message):
        read(str(folder))


@pytest.mark.parametrize("beside", ["pytorch_model.bin", "consolidated.safetensors", "index"])
def test_what_lies_beside_the_weights_is_not_read(folder, beside):
    tensors = load_file(folder / "model.safetensors")
    if beside == "index":
        index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif beside.endswith("bin"):
        (folder / beside).write_bytes(b"no pickle at all")
    else:
        save_file({name: -tensor for name, tensor in tensors.items()}, folder / beside)
    paged = open_paged(find_model(str(folder)), "float32").model
    assert torch.equal(load(folder)[0](PROMPT).logits, paged(PROMPT).logits)
    assert torch.equal(paged.get_input_embeddings().weight, tensors["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    "change, message",
    [
        (lose_a_layer, r"3 tensors are missing \(model.layers.1.mlp.down_proj.weight"),
        (cut_a_matrix, "model.layers.0.mlp.up_proj.weight"),
        (spoil("model.norm.weight"), "1 of the 64 numbers of model.norm.weight are NaN"),
        (spoil("model.embed_tokens.weight"), "numbers of model.embed_tokens.weight are NaN"),
    ],
)
def test_what_transformers_would_draw_at_random_is_an_error(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_tensors_that_are_not_used_are_named_once(folder):
    rewrite(folder, lambda tensors: tensors.update({"adapter.weight": torch.ones(2)}))
    with pytest.warns(UserWarning, match=r"1 tensors .* not used \(adapter.weight\)") as caught:
        load(folder)
    assert len(caught) == 1


def test_code_of_a_folder_runs_only_where_it_is_trusted(folder, monkeypatch):
    """Whatever stands on standard input: transformers asks there, and a `y` is soon typed."""
    trace = folder / "it-ran"
    code = (
        "from pathlib import Path\n"
        f"Path({str(trace)!r}).touch()\n"
        "from transformers import LlamaConfig\n"
        "class Foreign(LlamaConfig):\n"
        "    model_type = 'foreign'\n"
    )
    (folder / "configuration_foreign.py").write_text(code)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "configuration_foreign.Foreign"}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(ModelError, match="brings code of its own.*--trust-remote-code"):
        load(folder)
    assert not trace.exists()
    trusted = ModelSource(str(folder), str(folder), None, local=True, trust_remote_code=True)
    with pytest.raises(ModelError):  # the configuration runs; there is no model class for it
        load_model(trusted, "float32")
    assert trace.exists()


@pytest.mark.slow
def test_what_trusted_code_takes_to_import_is_not_the_configs_doing(folder, monkeypatch):
    """Building is limited in time; importing what the code needs is not."""
    expected = load(folder)[0](PROMPT).logits
    slow = (
        "import time\n"
        "until = time.process_time() + 1\n"
        "while time.process_time() < until:\n"
        "    sum(range(10_000))\n"  # asking for the time takes none of the limited kind
    )
    (folder / "configuration_slow.py").write_text(
        f"{slow}"
        "from transformers import LlamaConfig\n"
        "class SlowConfig(LlamaConfig):\n"
        "    model_type = 'slow'\n"
    )
    model_code = (
        f"{slow}"
        "from transformers import LlamaForCausalLM\n"
        "from .configuration_slow import SlowConfig\n"
        "class Slow(LlamaForCausalLM):\n"
        "    config_class = SlowConfig\n"
    )
    own = {
        "AutoConfig": "configuration_slow.SlowConfig",
        "AutoModelForCausalLM": "modeling_slow.Slow",
    }
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "slow", "auto_map": own, "architectures": ["Slow"]}
    (folder / "config.json").write_text(json.dumps(config))
    trusted = ModelSource(str(folder), str(folder), None, local=True, trust_remote_code=True)
    monkeypatch.setattr("qbench.models.limits.SECONDS", 0.5)
    monkeypatch.setattr("qbench.models.limits.SECONDS_PER_TENSOR", 0.0)
    (folder / "modeling_slow.py").write_text(f"import no_such_package_at_all\n{model_code}")
    with pytest.raises(ModelError, match="no_such_package_at_all"):
        load_model(trusted, "float32")
    (folder / "modeling_slow.py").write_text(model_code)
    assert torch.equal(load_model(trusted, "float32")[0](PROMPT).logits, expected)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_never_opened(folder, name):
    torch.save(load_file(folder / "model.safetensors"), folder / name)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=f"{name} is a pickle.*convert it where you trust it"):
        load(folder)


def link_out(folder, tmp_path):
    (tmp_path / "outside.json").write_text("{}")
    os.symlink(tmp_path / "outside.json", folder / "generation_config.json")


def link_in_a_circle(folder, tmp_path):
    os.symlink(folder / "a", folder / "b")
    os.symlink(folder / "b", folder / "a")


def pipe(folder, tmp_path):
    os.mkfifo(folder / "special_tokens_map.json")


def device(folder, tmp_path):
    os.symlink("/dev/zero", folder / "vocab.txt")


@pytest.mark.parametrize(
    "place, message",
    [
        (link_out, "generation_config.json is a link out of its folder"),
        (link_in_a_circle, "is a link that leads nowhere"),
        (pipe, "special_tokens_map.json is no ordinary file"),
        (device, "vocab.txt is a link out of its folder, to /dev/zero"),
    ],
)
def test_only_ordinary_files_of_the_folder_itself_are_read(folder, tmp_path, place, message):
    (folder / "generation_config.json").unlink()
    place(folder, tmp_path)
    with pytest.raises(QbenchError, match=message):
        load(folder)


def test_links_of_the_hubs_cache_are_followed(tiny_folder, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for file in tiny_folder.iterdir():
        shutil.copy(file, blobs / file.name)
        os.symlink(f"../../blobs/{file.name}", snapshot / file.name)
    model, _ = load(snapshot)
    assert torch.equal(model(PROMPT).logits, load(tiny_folder)[0](PROMPT).logits)


def test_a_quantized_model_is_read_as_such_and_not_rounded_again(tiny_folder, tmp_path):
    saved = quantize(str(tiny_folder), "rtn", qbench_scheme()).save(tmp_path / "saved")
    read = read_model(find_model(str(saved)), "float32")
    assert read.weights and read.bits_per_weight["total"] == pytest.approx(4.625)
    with pytest.raises(QbenchError, match="quantized already, by rtn at 4.62 bits"):
        quantize(str(saved), "rtn", qbench_scheme())


def qbench_scheme():
    from qbench import Scheme

    return Scheme(4, 32)


def test_a_saved_model_generates_as_the_original_does(folder, tmp_path):
    """Its generation_config.json travels: into a quantized folder, out of it, and by export."""
    from qbench import load as load_saved
    from qbench.export import export

    settings = {"bos_token_id": 256, "eos_token_id": [257, 258], "pad_token_id": 258}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    saved = quantize(str(folder), "rtn", qbench_scheme()).save(tmp_path / "saved")
    dense = export(saved, "dense", tmp_path / "dense")
    for place in (folder, saved, dense):
        stored = json.loads((place / "generation_config.json").read_text())
        assert stored["eos_token_id"] == [257, 258]
    for model in (load(folder)[0], load_saved(saved).model, load(dense)[0]):
        assert model.generation_config.eos_token_id == [257, 258]


def test_an_exported_model_of_experts_is_whole_for_transformers(tmp_path, random_model, tokenizer):
    from transformers import MixtralConfig, MixtralForCausalLM

    from qbench.export import export

    config = MixtralConfig(
        vocab_size=259, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = random_model(MixtralForCausalLM, config)
    saved = quantize(model, "rtn", qbench_scheme(), tokenizer=tokenizer).save(tmp_path / "saved")
    dense = export(saved, "dense", tmp_path / "dense")
    names = load_file(dense / "model.safetensors").keys()
    assert "model.layers.0.block_sparse_moe.experts.3.w1.weight" in names
    read, report = AutoModelForCausalLM.from_pretrained(
        dense, dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    torch.testing.assert_close(read(PROMPT).logits, model(PROMPT).logits, rtol=1e-4, atol=1e-4)
