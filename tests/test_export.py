"""Folders for other programs: exported and read back the same, or refused with the reason."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import qbench
from methods_of_formats import SteppedAlternating, SteppedRTN
from qbench import Scheme
from qbench.checkpoint.folder import unquantized_tensors, write_model_folder
from qbench.errors import ConfigError, ModelError, QbenchError, StoreError
from qbench.export import export
from qbench.inspection.report import inspect
from qbench.kernels.dispatch import using
from qbench.models.blocks import quantizable
from samples import PROMPT


@pytest.fixture(scope="module")
def saved(tiny, tokenizer, tmp_path_factory):
    """`saved(bits, group_size, symmetric, method)`: a folder of a tiny model, made once."""

    @functools.cache
    def make(bits=4, group_size=32, symmetric=False, method="rtn"):
        folder = tmp_path_factory.mktemp("saved") / "model"
        model = tiny(hidden_size=64, tie_word_embeddings=True)
        scheme = Scheme(bits, group_size, symmetric)
        return qbench.quantize(model, method, scheme, tokenizer=tokenizer).save(folder)

    return make


def logits(folder):
    """By the dense product, bit for bit; table kernels sum in another order."""
    with using("dequantized"):
        return qbench.load(folder, "float32").model(PROMPT).logits


@pytest.mark.parametrize(
    "bits", [pytest.param(2, marks=pytest.mark.slow), 3, 4, pytest.param(8, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("group_size", [32, None])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_gptq_folder_says_the_same(saved, tmp_path, bits, group_size, symmetric):
    folder = saved(bits, group_size, symmetric)
    made = export(folder, "gptq", tmp_path / "gptq")
    entry = json.loads((made / "config.json").read_text())["quantization_config"]
    assert (entry["bits"], entry["group_size"]) == (bits, group_size or -1)
    assert (
        entry["checkpoint_format"] == ("gptq" if symmetric else "gptq_v2")
        and entry["sym"] is symmetric
    )
    # per channel, layers have groups of different lengths, which -1 says for all
    assert torch.equal(logits(made), logits(folder))
    again = export(made, "qbench", tmp_path / "again")
    assert torch.equal(logits(again), logits(folder))


@pytest.mark.parametrize("method", ["rtn", "alternating", "none"])
def test_a_dense_folder_needs_nothing_of_ours(saved, tmp_path, method):
    folder = saved(method=method)
    made = export(folder, "dense", tmp_path / "dense")
    assert "quantization_config" not in json.loads((made / "config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    assert torch.equal(model(PROMPT).logits, logits(folder))
    half = export(folder, "dense", tmp_path / "half", "bfloat16")
    assert AutoModelForCausalLM.from_pretrained(half, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize(
    "method, target",
    [(SteppedRTN(), "gptq"), (SteppedAlternating(), "dense")],
    ids=["gptq", "dense"],
)
def test_scales_as_integers_are_exported_as_the_numbers_they_are(saved, tmp_path, method, target):
    folder = saved(group_size=8, method=method)
    assert any(name.endswith("_span") for name in load_file(folder / "model.safetensors"))
    made = export(folder, target, tmp_path / target)
    if target == "dense":
        model = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
        assert torch.equal(model(PROMPT).logits, logits(folder))
    else:
        assert torch.equal(logits(made), logits(folder))


def test_what_gptq_cannot_hold_is_refused_and_nothing_is_written(saved, tmp_path):
    with pytest.raises(
        ConfigError, match="has format 'binary', and GPTQ holds uniform ones; use --to dense"
    ):
        export(saved(method="alternating"), "gptq", tmp_path / "out")
    with pytest.raises(ConfigError, match="layer .*GPTQ has no codes of 5 bits"):
        export(saved(bits=5), "gptq", tmp_path / "out")
    with pytest.raises(ConfigError, match="unknown export format 'gtpq'. Did you mean 'gptq'"):
        export(saved(), "gtpq", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def other_scales(tensors, config):
    return {name: 2 * tensor if "up_proj" in name else tensor for name, tensor in tensors.items()}


def lost(tensors, config):
    return {name: tensor for name, tensor in tensors.items() if "up_proj" not in name}


@pytest.mark.parametrize(
    "change, message", [(other_scales, "reads back as another model"), (lost, "misses 2 tensors")]
)
def test_an_export_that_says_something_else_is_not_left_there(
    saved, tmp_path, monkeypatch, change, message
):
    kept = export(saved(), "dense", tmp_path / "dense")
    monkeypatch.setattr("qbench.export.published", lambda model, tensors: change(tensors, model))
    for verify in (None, True):
        with pytest.raises(StoreError, match=message):
            export(saved(), "dense", tmp_path / "dense", verify=verify)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense"]
    model = AutoModelForCausalLM.from_pretrained(kept, dtype=torch.float32)
    assert torch.equal(model(PROMPT).logits, logits(saved())), "the older export is still there"
    export(saved(), "dense", tmp_path / "unseen", verify=False)


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= changes
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"quant_method": "aqlm"}, StoreError, "not the config of a model quantized by qbench"),
        ({"bits": "four"}, ModelError, "states no whole number for bits"),
        ({"bits": 8}, ModelError, "qzeros|scales|group"),
        ({"dynamic": ["-:mlp"]}, ModelError, "dynamic is list, not an object"),
    ],
)
def test_a_foreign_folder_that_cannot_be_read(saved, tmp_path, changes, error, message):
    made = export(saved(symmetric=True), "gptq", tmp_path / "gptq")
    edit(made, **changes)
    with pytest.raises(error, match=message):
        qbench.load(made)


def rewrite(folder, change):
    """Change the tensors of a folder, as other programs leave them: without our index."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").unlink()


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("sym", "false", "sym='false', which is neither true nor false"),
        ("desc_act", 0, "desc_act=0, which is neither"),
        ("group_size", True, "states no whole number for group_size"),
        ("bits", True, "states no whole number for bits"),
        ("bits", [4], "states no whole number for bits"),
        ("checkpoint_format", {}, "unknown checkpoint format {}"),
    ],
)
def test_settings_of_a_wrong_kind_are_named(saved, tmp_path, key, value, message):
    made = export(saved(symmetric=True), "gptq", tmp_path / "gptq")
    edit(made, **{key: value})
    with pytest.raises(QbenchError, match=message):
        qbench.load(made)


@pytest.mark.parametrize("shape", [(), (8,), (2, 2, 2), (0, 8)])
@pytest.mark.parametrize("part", ["qweight", "qzeros", "scales"])
def test_parts_that_are_no_matrices_are_named(saved, tmp_path, part, shape):
    made = export(saved(symmetric=True), "gptq", tmp_path / "gptq")
    name = f"model.layers.0.mlp.up_proj.{part}"

    def reshape(tensors):
        tensors[name] = torch.zeros(shape, dtype=tensors[name].dtype)

    rewrite(made, reshape)
    with pytest.raises(QbenchError, match=f"{part} of a GPTQ layer .* no matrix"):
        qbench.load(made)


def leave_frequencies(tensors):
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)


def leave_zero_biases(tensors):
    for name in [name for name in tensors if name.endswith(".qweight")]:
        columns = tensors[name].shape[1]
        tensors[name.replace("qweight", "bias")] = torch.zeros(columns, dtype=torch.float16)


def reverse_the_groups(tensors):
    """As act-order leaves them: the same weights, and groups that are no runs of inputs."""
    for name in [name for name in tensors if name.endswith(".g_idx")]:
        layer = name.removesuffix("g_idx")
        tensors[name] = tensors[name].max() - tensors[name]
        for part in ("scales", "qzeros"):
            tensors[layer + part] = tensors[layer + part].flip(0).contiguous()


@pytest.mark.parametrize("change", [leave_frequencies, leave_zero_biases, reverse_the_groups])
@pytest.mark.filterwarnings("ignore:.*are dequantized, exactly")
def test_what_older_programs_write_is_read_as_they_read_it(saved, tmp_path, change):
    made = export(saved(symmetric=True), "gptq", tmp_path / "gptq")
    expected = logits(made)
    rewrite(made, change)
    assert torch.equal(logits(made), expected)


def test_a_bias_that_a_model_has_no_place_for_is_refused(saved, tmp_path):
    made = export(saved(symmetric=True), "gptq", tmp_path / "gptq")
    name = "model.layers.0.mlp.down_proj.bias"
    rewrite(made, lambda tensors: tensors.update({name: torch.ones(64)}))
    with pytest.raises(StoreError, match=f"unexpected .'{name}"):
        qbench.load(made)


@pytest.mark.parametrize(
    "dynamic", [{"-:.*lm_head.*": {}}, {"+:.*mlp.*": {"bits": 4, "group_size": 32}}]
)
def test_settings_by_layer_are_seen_on_the_tensors(saved, tmp_path, dynamic):
    made = export(saved(symmetric=True), "gptq", tmp_path / "gptq")
    expected = logits(made)
    edit(made, dynamic=dynamic)
    assert torch.equal(logits(made), expected)


def test_settings_beside_the_config_are_found(saved, tmp_path):
    made = export(saved(symmetric=True), "gptq", tmp_path / "gptq")
    expected = logits(made)
    config = json.loads((made / "config.json").read_text())
    (made / "quantize_config.json").write_text(json.dumps(config.pop("quantization_config")))
    (made / "config.json").write_text(json.dumps(config))
    assert torch.equal(logits(made), expected)
    assert inspect(made).method == "gptq"


def test_an_awq_folder_is_read(tiny, tmp_path):
    """A random checkpoint in the GEMM layout, against the products by definition."""
    model, draw = tiny(hidden_size=64), torch.Generator().manual_seed(0)
    tensors = unquantized_tensors(model, layers := {name: None for name in quantizable(model)})
    for name in layers:
        out, inputs = model.get_submodule(name).weight.shape
        codes = torch.randint(0, 16, (inputs, out), generator=draw)
        zero = torch.randint(0, 16, (inputs // 32, out), generator=draw)
        scales = (torch.rand((inputs // 32, out), generator=draw) / 50).half()
        wide = [x.repeat_interleave(32, 0).float() for x in (zero, scales)]
        model.get_submodule(name).weight.data = ((codes - wide[0]) * wide[1]).T.contiguous()
        words = {"qweight": codes, "qzeros": zero}
        tensors |= {f"{name}.{part}": awq_words(values) for part, values in words.items()}
        tensors[f"{name}.scales"] = scales
    entry = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "version": "gemm",
        "zero_point": True,
    }
    folder = write_model_folder(tmp_path / "awq", model.config, None, tensors, entry)
    assert torch.equal(logits(folder), model(PROMPT).logits)
    assert qbench.load(folder).manifest["method"] == "awq"


def awq_words(values):
    """(n, out) codes -> (n, out/8) int32: nibbles are outputs 0 2 4 6 1 3 5 7 of eight."""
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    return (
        (values.unflatten(1, (-1, 8))[..., order] << (4 * torch.arange(8))).sum(-1).to(torch.int32)
    )


def test_a_gguf_file_of_the_model(saved, tmp_path):
    with pytest.raises(
        ConfigError, match="tokenizer"
    ):  # the tests' tokenizer has no merges to write
        export(saved(symmetric=True), "gguf", tmp_path / "model.gguf")
