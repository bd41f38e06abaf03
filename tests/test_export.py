"""Folders for other programs: exported and read back the same, or refused with the reason."""

from __future__ import annotations

import functools
import json
import re
import shutil
from math import prod
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import qbench
from families import FAMILIES, family_model
from methods_of_formats import SteppedAlternating, SteppedRTN
from qbench import Scheme
from qbench.checkpoint.folder import load_checkpoint
from qbench.checkpoint.paged import open_paged
from qbench.checkpoint.write_folder import save_checkpoint, unquantized_tensors, write_model_folder
from qbench.errors import ConfigError, ModelError, QbenchError, StoreError
from qbench.export import export
from qbench.files.shards import INDEX
from qbench.inspection.report import inspect
from qbench.kernels.dispatch import using
from qbench.models.blocks import quantizable
from qbench.models.published_names import published
from qbench.models.source import find_model
from qbench.quantization import stored_as
from qbench.scheme import LayerRule
from samples import PROMPT, integers, scales


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


@pytest.mark.parametrize("tied", [True, False])
def test_a_dense_folder_of_conv1d_layers_keeps_them_as_they_were(tmp_path, tied):
    """GPT-2 stores (in, out); two of its four layers in a block are no squares."""
    kind, values = FAMILIES["gpt2-conv1d"]
    model = family_model(kind, values | {"tie_word_embeddings": tied})
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    made = qbench.quantize(model, "rtn", Scheme(4, 16))
    made.save(tmp_path / "own")
    export(tmp_path / "own", "dense", tmp_path / "dense", verify=True)
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    assert torch.equal(dense(PROMPT).logits, made.model(PROMPT).logits)
    plain = qbench.load(tmp_path / "own", "float32", packed=False).model
    assert {name: tensor.shape for name, tensor in plain.state_dict().items()} == before
    plain.save_pretrained(tmp_path / "plain")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    assert torch.equal(again(PROMPT).logits, made.model(PROMPT).logits)
    for target in ("gptq", "qbench"):
        export(tmp_path / "own", target, tmp_path / target, verify=True)
    for name, tensor in (
        open_paged(find_model(str(tmp_path / "own")), "float32").model.state_dict().items()
    ):
        assert tensor.shape == before[name]


def test_what_transformers_cannot_read_is_refused_in_a_sentence(saved, tmp_path, monkeypatch):
    def wrong(model, tensors):
        return published(model, tensors | {"model.norm.weight": torch.ones(3)})

    monkeypatch.setattr("qbench.export.published", wrong)
    with pytest.raises(StoreError, match="transformers cannot read the export .*please report"):
        export(saved(), "dense", tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


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
    words = f"gptq {bits}b {'channel' if group_size is None else f'g{group_size}'}"
    for each in (made, again, export(again, "qbench", tmp_path / "twice")):
        assert stored_as(find_model(str(each))) == words
    card = (again / "README.md").read_text()
    assert f"# {words}\n" in card and "None" not in card.partition("## How")[0]


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


def partly_quantized(model, folder, scheme):
    """A saved model whose second block has its attention in full precision."""
    made = qbench.quantize(model, "rtn", scheme)
    weights = {n: w for n, w in made.weights.items() if "layers.1.self_attn" not in n}
    return save_checkpoint(folder, model, None, weights, {}, {})


def test_layers_in_full_precision_are_named_to_gptqmodel(tiny, tmp_path):
    model = tiny(hidden_size=64)
    folder = partly_quantized(model, tmp_path / "own", Scheme(4, 32, True))
    made = export(folder, "gptq", tmp_path / "gptq", verify=True)
    dynamic = json.loads((made / "config.json").read_text())["quantization_config"]["dynamic"]
    assert list(dynamic.values()) == [{}] * 4
    for name in quantizable(model):
        left_out = [key for key in dynamic if re.match(key.removeprefix("-:"), name)]
        assert len(left_out) == ("layers.1.self_attn" in name), name


def test_a_layer_of_as_many_inputs_as_a_group_has_the_group_size_of_the_others(tiny, tmp_path):
    model = tiny(hidden_size=64, intermediate_size=128)
    own = qbench.quantize(model, "rtn", Scheme(4, 64, True)).save(tmp_path / "whole")
    made = export(own, "gptq", tmp_path / "made", verify=True)
    entry = json.loads((made / "config.json").read_text())["quantization_config"]
    assert entry["group_size"] == 64 and "dynamic" not in entry


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


@pytest.mark.parametrize("asked", ["auto", "bfloat16"])
def test_a_folder_that_states_no_dtype_is_exported(tiny, tmp_path, asked):
    made = qbench.quantize(tiny(hidden_size=64).half(), "rtn", Scheme(4, 16, True))
    folder = made.save(tmp_path / "own")
    config = json.loads((folder / "config.json").read_text()) | {"dtype": None}
    (folder / "config.json").write_text(json.dumps(config))
    made = export(folder, "gptq", tmp_path / "gptq", asked, verify=True)
    # made again of what was exported, which states another dtype
    export(made, "qbench", tmp_path / "again", verify=True)


def test_a_model_whose_own_logits_are_no_numbers_is_said_to_be_one(tiny, tmp_path):
    model = tiny()
    for layer in (model.model.norm, model.lm_head):
        layer.weight.data.fill_(3e38)
    folder = qbench.quantize(model, "rtn", Scheme(4, 16, True)).save(tmp_path / "own")
    with pytest.raises(StoreError, match="itself gives logits that are not finite"):
        export(folder, "gptq", tmp_path / "gptq")


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


def without_order(tensors):
    for name in [name for name in tensors if name.endswith(".g_idx")]:
        del tensors[name]


def test_an_order_that_is_stated_and_missing_is_no_default(saved, tmp_path):
    made = export(saved(symmetric=True), "gptq", tmp_path / "gptq")
    whole = qbench.load(made, packed=False).model.state_dict()
    rewrite(made, without_order)
    torch.testing.assert_close(qbench.load(made, packed=False).model.state_dict(), whole)
    edit(made, desc_act=True)
    with pytest.raises(ModelError, match="states desc_act=true, and there is no g_idx"):
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


def leave_masks(tensors):
    """As old folders of GPT-2 and its kin do."""
    attention = "model.layers.0.self_attn"
    tensors[f"{attention}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
    tensors[f"{attention}.masked_bias"] = torch.tensor(-1e9)
    tensors["model.position_ids"] = torch.arange(8)


def reverse_the_groups(tensors):
    """As act-order leaves them: the same weights, and groups that are no runs of inputs."""
    for name in [name for name in tensors if name.endswith(".g_idx")]:
        layer = name.removesuffix("g_idx")
        tensors[name] = tensors[name].max() - tensors[name]
        for part in ("scales", "qzeros"):
            tensors[layer + part] = tensors[layer + part].flip(0).contiguous()


@pytest.mark.parametrize(
    "change", [leave_frequencies, leave_zero_biases, leave_masks, reverse_the_groups]
)
@pytest.mark.filterwarnings("ignore:.*are dequantized, exactly")
def test_what_older_programs_write_is_read_as_they_read_it(saved, tmp_path, change):
    made = export(saved(symmetric=True), "gptq", tmp_path / "gptq")
    expected = logits(made)
    rewrite(made, change)
    assert torch.equal(logits(made), expected)


Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "name, tensor, message",
    [
        (
            "model.layers.0.mlp.down_proj.bias",
            torch.ones(64),
            "has no place for .*, which makes 1 of its",
        ),
        (
            "model.layers.0.mlp.act.scales",
            torch.ones(64),
            "has no place for model.layers.0.mlp.act.s",
        ),
        ("model.layers.9.mlp.up_proj.weight", torch.ones(2, 2), "has no place for"),
        (f"{Q_PROJ}.weight", torch.ones(64, 64), "q_proj has the part weight, and qbench reads"),
        (
            f"{Q_PROJ}.weight_scale",
            torch.ones(1),
            "q_proj has the part weight_scale, and qbench reads",
        ),
        ("model.norm.weight", torch.ones(64, dtype=torch.int8), "norm.weight .torch.int8. belongs"),
        ("model.norm.weight", torch.ones(64).to(torch.float8_e4m3fn), "float8_e4m3fn. belongs to"),
        ("model.extra.SCB", torch.ones(64), "model.extra.SCB .torch.float32. belongs to a weight"),
    ],
)
def test_a_tensor_that_no_reader_takes_is_refused_by_name(saved, tmp_path, name, tensor, message):
    made = export(saved(symmetric=True), "gptq", tmp_path / "gptq", verify=False)
    rewrite(made, lambda tensors: tensors.update({name: tensor}))
    with pytest.raises(StoreError, match=message):
        qbench.load(made)


def test_what_transformers_ignores_in_files_of_a_model_is_no_leftover(saved, tmp_path, monkeypatch):
    made = export(saved(symmetric=True), "gptq", tmp_path / "gptq", verify=False)
    rewrite(made, lambda tensors: tensors.update({"mtp.layers.0.weight": torch.ones(2, 2)}))
    ignored = "_keys_to_ignore_on_load_unexpected"
    monkeypatch.setattr(LlamaForCausalLM, ignored, [r"^mtp.*"])
    assert torch.equal(logits(made), logits(saved(symmetric=True)))


def test_integers_in_the_place_of_floating_numbers_are_refused(tiny, tmp_path):
    own = qbench.quantize(tiny(attention_bias=True), "rtn", Scheme(4, 16, True)).save(
        tmp_path / "o"
    )
    made = export(own, "gptq", tmp_path / "gptq", verify=False)
    bias = torch.ones(32, dtype=torch.int8)
    rewrite(made, lambda tensors: tensors.update({f"{Q_PROJ}.bias": bias}))
    with pytest.raises(
        StoreError, match="q_proj.bias is torch.int8, and the model has torch.float"
    ):
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
    (made / "model.safetensors.index.json").unlink()
    (made / "model.safetensors").rename(made / "gptq_model-4bit-32g.safetensors")
    assert torch.equal(logits(made), expected), "older programs call the file so"


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


@pytest.mark.parametrize("bits, zeros", [(4, True), (4, False), (8, True)])
def test_a_folder_of_compressed_tensors_is_read(saved, tmp_path, bits, zeros):
    """A random checkpoint of packed integers, against the products by definition."""
    made = compressed_folder(saved(), tmp_path / "c", bits, zeros)
    model = qbench.load(made.folder, "float32")
    assert set(model.weights) == set(made.weights) and model.manifest["method"] == CT
    for name, weight in made.weights.items():
        assert torch.equal(model.weights[name].dequantize(), weight)
    source = find_model(str(made.folder))
    assert stored_as(source) == f"{CT} {bits}b g32"
    with pytest.raises(ConfigError, match=f"quantized already, by {CT}"):
        qbench.quantize(str(made.folder), "rtn", Scheme(3, 32))
    assert logits(export(made.folder, "qbench", tmp_path / "own")).equal(logits(made.folder))
    assert stored_as(find_model(str(tmp_path / "own"))) == stored_as(source)
    if not zeros:
        assert logits(export(made.folder, "gptq", tmp_path / "gptq")).equal(logits(made.folder))


def test_a_format_of_compressed_tensors_that_is_not_packed_integers(saved, tmp_path):
    made = compressed_folder(saved(), tmp_path / "c", 4, False).folder
    edit(made, format="marlin-24")
    for read in (qbench.load, lambda folder: stored_as(find_model(str(folder)))):
        with pytest.raises(ModelError, match="the format 'marlin-24' of compressed-tensors is not"):
            read(made)
    edit(made, format="pack-quantized")
    rewrite(made, lambda tensors: [tensors.pop(n) for n in list(tensors) if "_packed" in n])
    with pytest.raises(StoreError, match="no tensor ends in .weight_packed"):
        qbench.load(made)


CT = "compressed-tensors"


class Made(NamedTuple):
    folder: Path
    weights: dict[str, torch.Tensor]


def compressed_folder(own, target, bits, zeros):
    """A copy of a model of ours with random packed integers in its quantized layers."""
    checkpoint = load_checkpoint(own, "float32", packed=False)
    weights, tensors = {}, unquantized_tensors(checkpoint.model, checkpoint.weights)
    each = 32 // bits
    for number, (name, weight) in enumerate(checkpoint.weights.items()):
        out, inputs = weight.shape
        codes = integers((out, inputs), 0, 2**bits, number)
        zero = integers((out, inputs // 32), 0, 2**bits, number + 1)
        scale = (scales((out, inputs // 32), number) / 2**bits / 9).half()
        shift = bits * torch.arange(each)
        words = (codes.unflatten(1, (-1, each)).long() << shift).sum(-1)
        tensors[f"{name}.weight_packed"] = words.to(torch.int32)
        tensors[f"{name}.weight_scale"] = scale
        tensors[f"{name}.weight_shape"] = torch.tensor([out, inputs])
        if zeros:
            rows = (zero.T.unflatten(1, (-1, each)).long() << shift).sum(-1)
            tensors[f"{name}.weight_zero_point"] = rows.T.to(torch.int32).contiguous()
        else:
            zero = torch.full_like(zero, 2 ** (bits - 1))
        wide = [part.repeat_interleave(32, 1).float() for part in (zero, scale)]
        weights[name] = (codes.float() - wide[0]) * wide[1]
    stated = {"num_bits": bits, "type": "int", "strategy": "group", "group_size": 32}
    groups = {"group_0": {"targets": ["Linear"], "weights": stated, "input_activations": None}}
    entry = {"quant_method": CT, "format": "pack-quantized", "config_groups": groups}
    config, tokenizer = checkpoint.model.config, checkpoint.tokenizer
    return Made(write_model_folder(target, config, tokenizer, tensors, entry), weights)


def test_groups_that_do_not_divide_the_inputs_are_dequantized(saved, tmp_path):
    """GPTQ's last group may be shorter than the others: 64 inputs in groups of 24, 24 and 16."""
    made = export(saved(symmetric=True), "gptq", tmp_path / "gptq")
    edit(made, group_size=24)
    expected = {}

    def regroup(tensors):
        for name in [name for name in tensors if name.endswith(".qweight")]:
            layer = name.removesuffix("qweight")
            inputs, outputs = 8 * tensors[name].shape[0], tensors[name].shape[1]
            groups = -(-inputs // 24)
            scale = (scales((groups, outputs), inputs) / 200).half()
            tensors[layer + "scales"] = scale
            tensors[layer + "qzeros"] = torch.full((groups, outputs // 8), 0x77777777).int()
            tensors[layer + "g_idx"] = (torch.arange(inputs) // 24).int()
            codes = (tensors[name][:, None] >> 4 * torch.arange(8)[None, :, None]) & 15
            wide = scale.float().repeat_interleave(24, 0)[:inputs]
            expected[layer[:-1]] = ((codes.flatten(0, 1) - 8).float() * wide).T

    rewrite(made, regroup)
    with pytest.warns(UserWarning, match="scattered over the inputs or of unequal length"):
        weights = qbench.load(made, "float32").weights
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(weights[name].dequantize(), weight)


@pytest.mark.parametrize("rules", [(), (LayerRule.parse("*.experts.1.*=skip"),)])
def test_experts_that_are_quantized_have_their_published_names(
    tmp_path, random_model, tokenizer, rules
):
    """As GPTQ folders of Mixtral name them: w1, w2 and w3 of each expert."""
    config = MixtralConfig(
        vocab_size=259, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = random_model(MixtralForCausalLM, config)
    scheme = Scheme(4, 32, True, rules=rules)
    own = qbench.quantize(model, "rtn", scheme, tokenizer=tokenizer).save(tmp_path / "own")
    made = export(own, "gptq", tmp_path / "gptq", verify=True)
    block = "model.layers.0.block_sparse_moe"
    expected = {f"{block}.gate.weight"}
    for expert in range(4):
        parts = ["weight"] if rules and expert == 1 else ["qweight", "qzeros", "scales", "g_idx"]
        for layer in ("w1", "w2", "w3"):
            expected |= {f"{block}.experts.{expert}.{layer}.{part}" for part in parts}
    names = load_file(made / "model.safetensors").keys()
    assert {name for name in names if "self_attn" not in name and "moe" in name} == expected
    assert not any(".mlp." in name for name in names)
    entry = json.loads((made / "config.json").read_text())["quantization_config"]
    left_out = [name for name in expected if name.endswith("w2.weight")]
    for name in left_out:
        layer = name.removesuffix(".weight")
        assert any(re.match(key.removeprefix("-:"), layer) for key in entry["dynamic"])
    assert len(left_out) == len(rules)
    assert torch.equal(logits(made), logits(own))


@pytest.mark.parametrize("family", ["llama", "gpt2-conv1d"])
def test_layers_that_were_skipped_are_dense_in_a_gptq_folder(tmp_path, family):
    kind, values = FAMILIES[family]
    model = family_model(kind, values)
    first = next(iter(quantizable(model)))
    scheme = Scheme(4, 32, True, rules=(LayerRule.parse(f"{first}=skip"),))
    made = qbench.quantize(model, "rtn", scheme)
    own = made.save(tmp_path / "own")
    written = export(own, "gptq", tmp_path / "gptq", verify=True)
    dense = dict(model.named_parameters())[f"{first}.weight"]
    stored = load_file(written / "model.safetensors")
    assert torch.equal(stored[f"{first}.weight"].float(), dense)
    entry = json.loads((written / "config.json").read_text())["quantization_config"]
    assert entry["dynamic"] == {f"-:^{re.escape(first)}$": {}}
    with torch.no_grad():
        assert torch.equal(logits(written), made.model(PROMPT).logits)


@pytest.mark.parametrize("family", ["llama", "gpt2-conv1d", "mixtral-experts"])
def test_layers_that_were_skipped_count_in_every_folder(tmp_path, family):
    """With the bits that they take, and without the routers."""
    model = family_model(*FAMILIES[family])
    scheme = Scheme(4, 32, True, rules=(LayerRule("*.0.*", 16),))
    quantized = qbench.quantize(model, "rtn", scheme)
    folders = [quantized.save(tmp_path / "own")]
    folders.append(export(folders[0], "gptq", tmp_path / "gptq"))
    folders.append(export(folders[1], "qbench", tmp_path / "again"))
    own, gptq, again = map(inspect, folders)
    count = sum(prod(weight.shape) for weight in quantized.weights.values())
    for found in (own, gptq, again):
        assert (found.quantized_weights, found.notes) == (count, own.notes if found is own else ())
        assert found.quantized_layers == len(quantized.weights)
        assert found.code_bits == pytest.approx(4)
        assert found.bits_per_weight["dense_weights"] == own.bits_per_weight["dense_weights"]
    read = qbench.load(folders[1], "float32")
    assert read.weights.keys() == quantized.weights.keys()
    assert read.bits_per_weight["total"] == pytest.approx(again.bits_per_weight["total"])


def test_a_skipped_layer_keeps_its_dtype_in_a_gptq_folder(tiny, tmp_path):
    """In a folder that is in bfloat16 for the most part."""
    model = tiny(hidden_size=64, vocab_size=4096, tie_word_embeddings=True)
    embedding = model.get_input_embeddings().weight
    embedding.data = embedding.data.bfloat16().float()
    name = "model.layers.0.self_attn.k_proj"
    quantized = qbench.quantize(model, "rtn", Scheme(4, 32, rules=(LayerRule(name, 16),)))
    own = quantized.save(tmp_path / "own")
    assert json.loads((own / "config.json").read_text())["dtype"] == "bfloat16"
    written = export(own, "gptq", tmp_path / "gptq", verify=True)
    again = export(written, "qbench", tmp_path / "again", verify=True)
    for folder in (own, written, again):
        stored = load_file(folder / "model.safetensors")[f"{name}.weight"]
        assert stored.dtype == torch.float32
        assert torch.equal(stored, quantized.weights[name].dequantize())


def test_a_model_without_a_quantized_layer_is_no_gptq_folder(saved, tmp_path):
    with pytest.raises(ConfigError, match="has format 'dense', and GPTQ holds uniform ones"):
        export(saved(method="none"), "gptq", tmp_path / "gptq")


def test_the_command_says_the_bits_of_what_it_writes_and_of_the_source(command, saved, tmp_path):
    own = saved(symmetric=True)
    for target, written in (("gptq", 4.625), ("dense", None)):
        code, text, said = command("export", own, "--to", target, "-o", tmp_path / target)
        assert code == 0, said
        own_bits = inspect(own).bits_per_weight["total"]
        assert f"({own}: {own_bits:.3f} bits/weight)" in text
        bits = inspect(tmp_path / target).bits_per_weight.get("total")
        assert (bits is None) == (written is None)
        words = "bits/parameter, unquantized" if bits is None else f"{bits:.3f} bits/weight"
        assert text.startswith(str(tmp_path / target)) and words in text.partition(" (")[0]


@pytest.mark.parametrize("output", ["model", "link", "model/inside", "."])
@pytest.mark.parametrize(
    "asked",
    [
        ("export", "MODEL", "--to", "dense"),
        ("export", "MODEL", "--to", "gguf"),
        ("quantize", "--requantize", "--model", "MODEL", "--method", "rtn", "--bits", "4"),
    ],
    ids=lambda asked: asked[-1] if asked[0] == "export" else "quantize",
)
def test_no_command_writes_over_the_model_that_it_reads(command, saved, tmp_path, asked, output):
    model = shutil.copytree(saved(), tmp_path / "model")
    (tmp_path / "link").symlink_to(model)
    shutil.copy(model / INDEX, tmp_path)  # so that the folder above may be replaced, too
    before = {path: path.read_bytes() for path in model.iterdir()}
    words = [model if word == "MODEL" else word for word in asked]
    code, text, said = command(*words, "-o", tmp_path / output)
    refusals = ["the model that is read"]
    if "gguf" in asked:
        refusals.append("it is a folder")
    said = " ".join(said.split())
    assert code == 2 and any(words in said for words in refusals) and not text
    assert {path: path.read_bytes() for path in model.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", "link", INDEX}


def test_a_gguf_file_of_the_model(saved, tmp_path):
    with pytest.raises(
        ConfigError, match="tokenizer"
    ):  # the tests' tokenizer has no merges to write
        export(saved(symmetric=True), "gguf", tmp_path / "model.gguf")
