"""`qbench inspect` and `qbench verify`: every byte has its item, each weight is counted once."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections import Counter
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from safetensors.torch import save_file

import qbench
from methods_of_formats import METHOD_OF_FORMAT, method_of_format
from qbench import Scheme
from qbench.errors import StoreError
from qbench.files.shards import INDEX, Shards
from qbench.inspection.gguf_header import BLOCKS, read_gguf
from qbench.inspection.pieces import item_of
from qbench.inspection.report import inspect
from qbench.models.blocks import linears
from qbench.models.experts import unfuse_experts
from samples import token_ids

PARTS = {
    "uniform": {"codes": ["codes"], "scales": ["scale"], "zero_points": ["zero_point"]},
    "binary": {"codes": ["planes"], "scales": ["alpha"], "shifts": ["shift"]},
    "rotated-binary": {
        "codes": ["planes"],
        "scales": ["alpha"],
        "shifts": ["shift"],
        "sign_vectors": ["signs"],
    },
    "lattice": {
        "codes": ["codes"],
        "sign_vectors": ["su", "sv"],
        "codebooks": ["map", "offset"],
    },
    "dense": {"dense_weights": ["weight"]},
    "uniform, scales as integers": {  # where that is smaller: not in layers of two groups
        "codes": ["codes"],
        "scales": ["scale_codes", "scale_span", "scale"],
        "zero_points": ["zero_point_codes", "zero_point_span", "zero_point"],
    },
    "binary, scales as integers": {
        "codes": ["planes"],
        "scales": ["alpha_codes", "alpha_span"],
        "shifts": ["shift_codes"],
    },
    "rotated-binary, scales as integers": {
        "codes": ["planes"],
        "scales": ["alpha_codes", "alpha_span"],
        "shifts": ["shift_codes"],
        "sign_vectors": ["signs"],
    },
}
I32, F16, I8, F8 = torch.int32, torch.float16, torch.int8, torch.float8_e4m3fn


@pytest.fixture(autouse=True)
def headers_only(monkeypatch):
    """No test may make the inspection read a tensor's data, but for 16 bytes of a shape."""
    read = Shards.tensor

    def refuse(shards, name):
        assert name.endswith(".weight_shape") and shards.entries[name].nbytes <= 16, "data read"
        return read(shards, name)

    monkeypatch.setattr(Shards, "tensor", refuse)


def items(found):
    return {item.name: item.nbytes for item in found.items}


def shares(found):
    return sum(item.share for item in found.items)


# Ours


@pytest.fixture(scope="module", params=METHOD_OF_FORMAT)
def ours(request, tiny, tokenizer, tmp_path_factory):
    method = method_of_format(request.param)
    tokens = token_ids(2, 32, vocabulary=256)
    made = qbench.quantize(
        tiny(attention_bias=True), method, Scheme(3, 16), tokens, tokenizer=tokenizer
    )
    return request.param, made, made.save(tmp_path_factory.mktemp("saved") / request.param)


def test_our_folders_agree_with_the_quantized_model(ours):
    kind, made, folder = ours
    found, expected = inspect(folder), made.bits_per_weight
    assert found.bits_per_weight["total"] == expected["total"]
    for item, parts in PARTS[kind].items():
        bits = sum(expected.get(part, 0) for part in parts)
        assert found.bits_per_weight[item] == pytest.approx(bits)
    assert found.bits_per_weight.keys() == {"total", *PARTS[kind]}
    assert found.quantized_weights == sum(w.shape[0] * w.shape[1] for w in made.weights.values())
    assert found.quantized_layers == len(made.weights) == 14
    assert (found.source, found.format_version, found.method) == (
        "qbench",
        "3",
        METHOD_OF_FORMAT[kind],
    )
    assert found.stated_bits == 3 and found.parameters["scheme"]["group_size"] == 16


def test_every_byte_of_our_folders_has_its_item(ours, tiny):
    kind, made, folder = ours
    found = inspect(folder)
    total = json.loads((folder / INDEX).read_text())["metadata"]["total_size"]
    assert found.nbytes == sum(items(found).values()) == total
    assert shares(found) == pytest.approx(1) and "other" not in items(found)
    assert {"embeddings", "head", "norms", "biases"} <= items(found).keys()
    assert found.model_parameters == sum(p.numel() for p in tiny(attention_bias=True).parameters())
    assert found.bits_per_parameter == 8 * total / found.model_parameters
    layers = set(made.weights) if kind == "dense" else set()
    assert set(found.unquantized_layers) == layers | {"lm_head"}
    sentinels = 0 if kind == "dense" else 14
    assert sum(item.tensors for item in found.items) == len(Shards(folder).entries) - sentinels


def test_padding_at_the_end_of_rows_is_told(tiny, tmp_path):
    model = tiny(hidden_size=36, intermediate_size=60, head_dim=18)
    folder = qbench.quantize(model, "rtn", Scheme(3, None)).save(tmp_path / "s")
    found = inspect(folder)
    assert found.bits_per_weight["codes"] > 3
    assert found.notes == (
        "the config states 3-bit codes, "
        f"they take {found.bits_per_weight['codes']:.4g} bits in the file",
    )


# Unquantized


def test_linear_layers_of_all_families_are_known(family, tmp_path):
    model = family()
    model.save_pretrained(tmp_path / "m")
    found = inspect(tmp_path / "m")
    assert (found.source, found.quantized_weights, found.bits_per_weight) == ("unquantized", 0, {})
    assert found.model_parameters == sum(p.numel() for p in model.parameters())
    assert found.bits_per_parameter == 32 and "other" not in items(found)
    linear = sum(layer.weight.numel() for layer in linears(model).values())
    if model.config.tie_word_embeddings:
        linear -= model.lm_head.weight.numel()
    routers = sum(
        p.numel() for name, p in model.named_parameters() if name.endswith("mlp.gate.weight")
    )
    unfuse_experts(model)
    experts = sum(
        layer.weight.numel() for name, layer in linears(model).items() if ".experts." in name
    )
    known = items(found).get("dense_weights", 0) + items(found).get("head", 0)
    assert known == 4 * (linear + experts + routers), Counter(
        item_of(n, 2) for n in found.unquantized_layers
    )


def test_a_head_that_is_stored_though_tied_adds_no_parameters(tmp_path):
    tensors = {
        "model.embed_tokens.weight": (64, 8),
        "lm_head.weight": (64, 8),
        "model.norm.weight": (8,),
    }
    tensors = {name: torch.zeros(shape, dtype=F16) for name, shape in tensors.items()}
    found = inspect(write(tmp_path / "m", None, tensors, tie_word_embeddings=True))
    assert found.model_parameters == 64 * 8 + 8 and found.nbytes == 2 * (2 * 64 * 8 + 8)
    assert "tied to the embeddings" in found.notes[0]


@pytest.mark.parametrize(
    "name, axes, item",
    [
        ("model.layers.0.mlp.gate.weight", 2, "dense_weights"),
        ("model.layers.0.mlp.experts.gate_up_proj", 3, "dense_weights"),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", 2, "biases"),
        ("blk.0.ffn_gate_exps.weight", 3, "dense_weights"),
        ("transformer.h.0.ln_1.bias", 1, "norms"),
        ("transformer.ln_f.weight", 1, "norms"),
        ("model.layers.0.self_attn.q_norm.weight", 1, "norms"),
        ("transformer.wpe.weight", 2, "embeddings"),
        ("gpt_neox.embed_out.weight", 2, "head"),
        ("output.weight", 2, "head"),
        ("output_norm.weight", 1, "norms"),
        ("blk.0.attn_output.weight", 2, "dense_weights"),
        ("token_embd_norm.weight", 1, "norms"),
        ("backbone.layers.0.mixer.conv1d.weight", 3, "other"),
        ("backbone.layers.0.mixer.A_log", 2, "other"),
        ("rope_freqs.weight", 1, "other"),
    ],
)
def test_what_a_tensor_is_by_its_name(name, axes, item):
    assert item_of(name, axes) == item


# Folders of other programs


def write(folder, entry, tensors, **config):
    """A Hugging Face folder: one file, and the config's quantization_config."""
    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    config |= {"model_type": "llama"} | ({} if entry is None else {"quantization_config": entry})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rest(inputs=96, out=64):
    """What is not quantized in all of them."""
    shapes = {
        "model.embed_tokens.weight": (100, inputs),
        "lm_head.weight": (100, inputs),
        "model.norm.weight": (inputs,),
    }
    return {name: torch.zeros(shape, dtype=F16) for name, shape in shapes.items()} | {
        "model.layers.0.q.bias": torch.zeros(out, dtype=F16)
    }


def layer(**parts):
    return {
        f"model.layers.0.q.{name}": torch.zeros(shape, dtype=dtype)
        for name, (dtype, *shape) in parts.items()
    }


def gptq(bits, inputs=96, out=64, groups=3, order=True, rows=None):
    rows = inputs * bits // 32 if rows is None else rows
    parts = {
        "qweight": (I32, rows, out),
        "qzeros": (I32, groups, out * bits // 32),
        "scales": (F16, groups, out),
    }
    return layer(**parts | ({"g_idx": (I32, inputs)} if order else {}))


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(tmp_path, bits, order):
    entry = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": 32,
        "desc_act": order,
        "checkpoint_format": "gptq",
    }
    tensors = gptq(bits, order=order) | rest()
    found = inspect(write(tmp_path / "m", entry, tensors))
    weights = 96 * 64
    expected = {"codes": bits, "scales": 16 * 3 / 96, "zero_points": bits * 3 / 96}
    expected |= {"permutations": 32 / 64} if order else {}
    assert found.bits_per_weight == pytest.approx(expected | {"total": sum(expected.values())})
    assert (found.source, found.method, found.format_version, found.stated_bits) == (
        "gptq",
        "gptq",
        "gptq",
        bits,
    )
    assert (
        found.quantized_weights == weights
        and found.model_parameters == weights + 2 * 9600 + 96 + 64
    )
    assert found.parameters == {"group_size": 32, "desc_act": order, "checkpoint_format": "gptq"}
    assert found.nbytes == sum(items(found).values()) == sum(t.nbytes for t in tensors.values())
    assert (
        items(found)["biases"] == 128
        and found.unquantized_layers == ("lm_head",)
        and found.notes == ()
    )


@pytest.mark.parametrize("stacked", [True, False])
def test_layers_that_were_left_count_where_they_are_in_the_blocks_and_no_routers(tmp_path, stacked):
    moe = "model.layers.0.mlp"
    left = {"model.layers.0.k": (32, 96), f"{moe}.shared.up": (4, 96), f"{moe}.shared.down": (8, 4)}
    shapes = {f"{name}.weight": shape for name, shape in left.items()}
    if stacked:
        shapes[f"{moe}.experts.up"] = (4, 8, 96)
    else:
        shapes |= {f"{moe}.experts.{index}.up.weight": (8, 96) for index in range(4)}
    count = 96 * 64 + sum(map(math.prod, shapes.values()))
    others = {f"{moe}.gate": (4, 96), f"{moe}.shared_gate": (1, 96), "vision.blocks.0.q": (9, 9)}
    shapes |= {f"{name}.weight": shape for name, shape in others.items()}
    dense = {name: torch.zeros(shape, dtype=F16) for name, shape in shapes.items()}
    entry = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    found = inspect(write(tmp_path / "m", entry, gptq(4) | rest() | dense))
    assert found.quantized_weights == count and set(others) < set(found.unquantized_layers)
    assert found.bits_per_weight["dense_weights"] == pytest.approx(16 * (1 - 96 * 64 / count))
    assert found.code_bits == 4 and found.notes == ()


@pytest.mark.parametrize("order", [True, False])
def test_measured_bits_stand_beside_the_stated_ones(tmp_path, order):
    tensors = gptq(3, order=order) | rest()
    found = inspect(write(tmp_path / "m", {"quant_method": "gptq", "bits": 4}, tensors))
    assert found.quantized_weights == 96 * 64
    assert found.stated_bits == 4 and found.bits_per_weight["codes"] == 3
    assert found.notes == ("the config states 4-bit codes, they take 3 bits in the file",)


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize("method, key", [("gptq", "dynamic"), ("auto-round", "extra_config")])
def test_layers_of_gptq_have_bits_of_their_own(tmp_path, method, key, order):
    tensors = gptq(4, order=order) | rest()
    for name, tensor in gptq(8, order=order).items():
        tensors[name.replace(".q.", ".k.")] = tensor
    entry = {"quant_method": method, "bits": 4, key: {"k": {"bits": 8}, "o": {}}}
    if method == "auto-round":
        entry["packing_format"] = "auto_round:auto_gptq"
    found = inspect(write(tmp_path / "m", entry, tensors))
    assert found.quantized_weights == 2 * 96 * 64 and found.bits_per_weight["codes"] == 6
    assert found.stated_bits is None and found.notes == ()
    entry[key]["k"]["bits"] = 2
    found = inspect(write(tmp_path / "n", entry, tensors))
    assert found.quantized_weights == 2 * 96 * 64 and found.notes == (
        "the config states codes of 2, 4 bits, and 1 layers have others, such as 8 bits in "
        "model.layers.0.k",
    )


def test_auto_round_has_the_layout_that_its_packing_names(tmp_path):
    parts = {"qweight": (I32, 96, 8), "qzeros": (I32, 3, 8), "scales": (F16, 3, 64)}
    entry = {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_awq"}
    found = inspect(write(tmp_path / "m", entry, layer(**parts) | rest()))
    assert (found.source, found.method, found.format_version) == (
        "auto-round",
        "auto-round",
        "auto_round:auto_awq",
    )
    assert found.quantized_weights == 96 * 64 and found.bits_per_weight["codes"] == 4
    entry["packing_format"] = "auto_round:fp8"
    codes = layer(weight=(torch.float8_e4m3fn, 64, 96), weight_scale=(F16, 64, 1))
    with pytest.raises(StoreError, match="'auto_round:fp8' of auto-round is not inspected, as no"):
        inspect(write(tmp_path / "n", entry, codes | rest()))


def test_awq_of_the_layout_gemv_has_4_bits_whatever_is_stated(tmp_path):
    parts = {"qweight": (I32, 64, 16), "qzeros": (I32, 64, 1), "scales": (F16, 64, 8)}
    entry = {"quant_method": "awq", "bits": 8, "version": "gemv"}
    found = inspect(write(tmp_path / "m", entry, layer(**parts) | rest(128)))
    assert found.quantized_weights == 128 * 64 and "they take 4 bits" in found.notes[0]


@pytest.mark.parametrize("layout", ["gemm", "gemv"])
def test_awq(tmp_path, layout):
    inputs, out, groups = 128, 64, 4
    shape = (inputs, out // 8) if layout == "gemm" else (out, inputs // 8)
    parts = {
        "qweight": (I32, *shape),
        "qzeros": (I32, groups, out // 8),
        "scales": (F16, groups, out),
    }
    entry = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 32,
        "zero_point": True,
        "version": layout,
    }
    tensors = layer(**parts) | rest(inputs)
    found = inspect(write(tmp_path / "m", entry, tensors))
    assert found.quantized_weights == inputs * out and found.format_version == layout
    assert found.bits_per_weight == {
        "total": 4.625,
        "codes": 4,
        "scales": 0.5,
        "zero_points": 0.125,
    }
    assert found.nbytes == sum(items(found).values()) == sum(t.nbytes for t in tensors.values())


def compressed(bits=4, group_size=32, form="pack-quantized", **weights):
    weights = {
        "num_bits": bits,
        "type": "int",
        "strategy": "group",
        "group_size": group_size,
    } | weights
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    entry = {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": ["lm_head"],
        "version": "0.12.0",
    }
    return entry | {"config_groups": groups}


def packed(words, groups, out=64, inputs=96, **more):
    """Of an older file, which has no weight_shape, where inputs is None."""
    parts = {"weight_packed": (I32, out, words), "weight_scale": (torch.bfloat16, out, groups)}
    shape = {} if inputs is None else {"model.layers.0.q.weight_shape": torch.tensor([out, inputs])}
    return layer(**parts, **more) | shape


@pytest.mark.parametrize(
    "bits, inputs, words, groups, more, padding",
    [
        (4, 96, 12, 3, {}, 0),
        (4, 96, 12, 3, {"weight_zero_point": (I32, 64 // 8, 3)}, 0),
        (8, 96, 24, 3, {}, 0),
        (
            3,
            96,
            10,
            3,
            {},
            0.3333,
        ),  # ten codes of 3 bits in a word: a word of which six codes' room is free
        (3, 96, 9, 3, {}, 0),  # newer files let codes cross words
        (4, 90, 12, 3, {"weight_g_idx": (I32, 90)}, 0.2667),
    ],
    ids=["4", "zero-points", "8", "3-padded", "3-dense", "g_idx"],
)
def test_compressed_tensors_packed(tmp_path, bits, inputs, words, groups, more, padding):
    tensors = packed(words, groups, inputs=inputs, **more) | rest(inputs)
    found = inspect(write(tmp_path / "m", compressed(bits), tensors))
    assert (
        found.quantized_weights == inputs * 64
        and found.source == "compressed-tensors"
        and found.method is None
    )
    assert found.bits_per_weight["codes"] == pytest.approx(bits + padding, abs=1e-4)
    assert found.bits_per_weight["scales"] == pytest.approx(16 * groups / inputs)
    assert found.bits_per_weight["other"] * inputs * 64 == 128, "weight_shape"
    assert ("zero_points" in found.bits_per_weight) == ("weight_zero_point" in more)
    assert bool(found.notes) == bool(padding) and found.unquantized_layers == ("lm_head",)
    assert found.nbytes == sum(items(found).values()) == sum(t.nbytes for t in tensors.values())


@pytest.mark.parametrize("inputs", [96, 100])
@pytest.mark.parametrize(
    "stated", [{"strategy": "channel"}, {"strategy": "tensor"}, {"strategy": None}]
)
@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_the_stated_shape_counts_whatever_the_layout(tmp_path, bits, stated, inputs):
    entry = compressed(bits, None, **stated)
    for name, words in (("stream", -(-inputs * bits // 32)), ("words", -(-inputs // (32 // bits)))):
        folder = write(tmp_path / name, entry, packed(words, 1, inputs=inputs) | rest(inputs))
        found = inspect(folder)
        assert found.quantized_weights == 64 * inputs
        assert found.bits_per_weight["codes"] == pytest.approx(32 * words / inputs)
        assert all("inputs" not in note for note in found.notes)


def test_groups_that_do_not_divide_the_inputs_are_no_weights(tmp_path):
    for number, inputs in enumerate((100, None)):
        entry = compressed(4, 32, strategy=None)  # then it is groups, as the library infers it
        tensors = packed(13, 4, inputs=inputs) | rest(100)
        found = inspect(write(tmp_path / f"{number}", entry, tensors))
        assert found.quantized_weights == 64 * (inputs or 104) and not found.notes[1:]


@pytest.mark.parametrize("shape", [[64, 97], [63, 96], [64, 0], [64, -96], [64], [64, 96, 1]])
def test_a_shape_that_is_not_that_of_the_codes_is_refused(tmp_path, shape):
    tensors = packed(12, 3) | rest()
    tensors["model.layers.0.q.weight_shape"] = torch.tensor(shape)
    with pytest.raises(StoreError, match="4-bit codes of the matrix that .*weight_shape states"):
        inspect(write(tmp_path / "m", compressed(), tensors))


def test_a_number_of_inputs_that_is_guessed_is_noted(tmp_path):
    entry = compressed(4, None, strategy="channel")
    found = inspect(write(tmp_path / "m", entry, packed(12, 1, inputs=None) | rest(90)))
    assert found.quantized_weights == 96 * 64
    assert found.notes == (
        "layers that state no number of inputs (1): as many weights are counted as fit whole "
        "words, which may be more or fewer than there are",
    )


@pytest.mark.parametrize("form, dtype", [("int-quantized", I8), ("float-quantized", F8)])
def test_compressed_tensors_plain(tmp_path, form, dtype):
    tensors = layer(
        weight=(dtype, 64, 96),
        weight_scale=(torch.bfloat16, 64, 1),
        input_scale=(torch.bfloat16, 1),
    )
    entry = compressed(8, None, form, strategy="channel", type=form.partition("-")[0])
    found = inspect(write(tmp_path / "m", entry, tensors | rest()))
    assert found.bits_per_weight == pytest.approx(
        {"total": 8 + 16 / 96, "codes": 8, "scales": 16 / 96}
    )
    assert items(found)["other"] == 2 and found.notes == ()


def test_each_group_of_compressed_tensors_has_its_bits(tmp_path):
    entry = compressed(4)
    entry["config_groups"]["group_1"] = {
        "targets": ["re:.*down$"],
        "weights": {"num_bits": 8, "strategy": "group", "group_size": 32},
    }
    down = {name.replace(".q.", ".down."): tensor for name, tensor in packed(24, 3).items()}
    found = inspect(write(tmp_path / "m", entry, packed(12, 3) | down | rest()))
    assert found.quantized_weights == 2 * 96 * 64 and found.bits_per_weight["codes"] == 6
    assert found.stated_bits is None and found.quantized_layers == 2
    entry["config_groups"]["group_1"]["targets"] = ["re:("]
    with pytest.raises(StoreError, match="a target of config_groups is no pattern"):
        inspect(write(tmp_path / "n", entry, packed(12, 3) | rest()))
    entry["config_groups"]["group_1"]["targets"] = ["re:(.|.)*[A-Z]$"]  # twice as long a letter
    long = {name.replace(".q.", f".{'q' * 40}."): t for name, t in packed(12, 3).items()}
    with pytest.raises(StoreError, match="takes over 0.1 s to match"):
        inspect(write(tmp_path / "slow", entry, long | rest()))


REFUSED = {
    "an unknown method": (
        {"quant_method": "aqlm"},
        gptq(4),
        "unknown quant_method 'aqlm'.*awq, bitsandbytes, compressed-tensors",
    ),
    "no method": ({"bits": 4}, gptq(4), "unknown quant_method 'None'"),
    "an entry that is no object": ([4], gptq(4), "quantization_config is list, not an object"),
    "an entry that is a name": ("gptq", gptq(4), "quantization_config is str, not an object"),
    "codes without an entry": (
        None,
        gptq(4),
        "model.layers.0.q.qweight .*, but its config.json has no quantization_config",
    ),
    "no codes": ({"quant_method": "gptq", "bits": 4}, {}, "no tensor ends in .qweight"),
    "no bits": ({"quant_method": "gptq"}, gptq(4), "states bits=None; it must be from 1 to 8"),
    "bits as a text": ({"quant_method": "awq", "bits": "4"}, gptq(4), "states bits='4'"),
    "too few rows": (
        {"quant_method": "gptq", "bits": 4},
        gptq(4, rows=1),
        "does not hold 4-bit codes",
    ),
    "no scales": (
        {"quant_method": "gptq", "bits": 4},
        layer(qweight=(I32, 12, 64)),
        "model.layers.0.q.scales is missing, not a matrix",
    ),
    "scales of another layer": (
        {"quant_method": "awq", "bits": 4},
        layer(qweight=(I32, 12, 64), scales=(F16, 3, 8)),
        "does not hold 4-bit codes of AWQ with scales",
    ),
    "an unknown format": (
        compressed(form="marlin-24"),
        packed(12, 3),
        "format 'marlin-24' is not known; known are pack-quant",
    ),
    "no groups": (compressed() | {"config_groups": {}}, packed(12, 3), "state no weights"),
    "no packed codes": (compressed(), {}, "no tensor ends in .weight_packed"),
    "no scale": (compressed(), layer(weight_packed=(I32, 64, 12)), "weight_scale missing"),
    "another number of rows": (
        compressed(),
        packed(12, 3) | layer(weight_scale=(F16, 7, 3)),
        "weight_scale .7, 3.",
    ),
    "ours, of another version": (
        {"quant_method": "qbench", "version": 1},
        {},
        "has format version 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_unknown_or_damaged_is_refused(tmp_path, case):
    entry, tensors, message = REFUSED[case]
    with pytest.raises(StoreError, match=message):
        inspect(write(tmp_path / "m", entry, tensors | rest()))


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(StoreError, match="is no model: give a GGUF file, or a Hugging Face folder"):
        inspect(tmp_path)
    with pytest.raises(StoreError, match="is no model"):
        inspect(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StoreError, match="model.safetensors cannot be read"):
        inspect(tmp_path)


# GGUF

PLAIN = {"F32": np.float32, "F16": np.float16, "BF16": np.uint8}


def write_gguf(path, tensors, **more):
    """tensors: type and shape (out, in) by name."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_token_list([f"word{i}" for i in range(50)])
    writer.add_token_types([1] * 50)
    writer.add_array("general.languages", ["en", "de"])
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    for name, (kind, *shape) in tensors.items():
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        dtype = PLAIN.get(kind, np.uint8)
        row = shape[-1] // block * size // np.dtype(dtype).itemsize
        writer.add_tensor(
            name, np.zeros((*shape[:-1], row), dtype=dtype), raw_dtype=GGMLQuantizationType[kind]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


TENSORS = {
    "token_embd.weight": ("Q6_K", 50, 256),
    "output.weight": ("F16", 50, 256),
    "output_norm.weight": ("F32", 256),
    "blk.0.attn_q.weight": ("Q4_K", 256, 256),
    "blk.0.attn_q.bias": ("F32", 256),
    "blk.0.ffn_up.weight": ("Q4_1", 64, 256),
    "blk.0.ffn_gate_inp.weight": ("F32", 4, 256),
    "blk.0.ffn_down_exps.weight": ("Q8_0", 4, 32, 64),
    "blk.1.attn_k.weight": ("IQ2_XXS", 32, 256),
    "blk.1.attn_v.weight": ("BF16", 32, 256),
}


def test_gguf(tmp_path):
    path = write_gguf(tmp_path / "model.gguf", TENSORS)
    found, reader = inspect(path), gguf.GGUFReader(path)
    weights = {"Q4_K": 65536, "Q4_1": 16384, "Q8_0": 8192, "IQ2_XXS": 8192, "BF16": 8192}
    bits = {"codes": 4 * (65536 + 16384) + 8 * 8192 + 8192 * 66 / 32}
    bits |= {"scales": 65536 / 4 + 16384 / 2 + 8192 / 2, "zero_points": 65536 / 4 + 16384 / 2}
    bits["dense_weights"] = 16 * 8192  # of a layer, and not of the router
    count = sum(weights.values())
    expected = {item: value / count for item, value in bits.items()}
    assert found.bits_per_weight == pytest.approx(expected | {"total": sum(expected.values())})
    assert found.quantized_weights == count and found.quantized_layers == 5
    assert found.nbytes == sum(items(found).values()) == sum(int(t.n_bytes) for t in reader.tensors)
    assert found.model_parameters == sum(int(t.n_elements) for t in reader.tensors)
    assert items(found)["embeddings"] == 50 * 210 and items(found)["head"] == 50 * 512
    assert found.unquantized_layers == ("blk.0.ffn_gate_inp", "blk.1.attn_v", "output")
    assert found.notes == ("tensors of type IQ2_XXS (1): their scales are among the codes",)
    assert (found.source, found.format_version, found.stated_bits) == ("gguf", "3", None)
    assert (
        found.parameters["file_type"] == "MOSTLY_Q4_K_M"
        and found.parameters["tensor_types"]["F32"] == 3
    )


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_block_is_its_parts(tmp_path, kind):
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    assert sum(BLOCKS[kind]) == size
    found = inspect(write_gguf(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": (kind, 3, 2 * block)}))
    assert found.bits_per_weight["total"] == 8 * size / block and found.notes == ()
    if kind[:2] in ("Q1", "Q2", "Q3", "Q4", "Q5", "Q6", "Q8", "IQ", "MX", "NV"):
        number = 4 if kind in ("MXFP4", "NVFP4") else int(kind.lstrip("IQ")[0])
        assert found.bits_per_weight["codes"] == number


def test_a_part_of_a_split_gguf_says_so(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.add_custom_alignment(64)
    writer.add_tensor("output.weight", np.zeros((2, 32), dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(3, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = inspect(tmp_path / "m.gguf")
    assert (
        found.notes == ("this file is one of 3 that make up the model",)
        and found.bits_per_weight == {}
    )


def test_what_is_no_ordinary_file_is_refused_and_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path / "pipe.gguf", Path("/dev/zero")):
        with pytest.raises(StoreError, match="is no ordinary file"):
            inspect(path)


def test_a_damaged_gguf_is_refused_at_once(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", TENSORS)
    whole = path.read_bytes()
    start = gguf.GGUFReader(path).data_offset
    words = (
        whole.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 8
    )  # where its length is
    axes = whole.index(b"blk.1.attn_k.weight") + len("blk.1.attn_k.weight")
    damaged = {
        "not b'GGUF'": b"GGML" + whole[4:],
        "cannot mmap": b"",
        "it has version 50331648": whole[:4] + struct.pack(">I", 3) + whole[8:],
        "is not in it as a whole": whole[:-20000],
        "before its header does": whole[:words] + struct.pack("<Q", 2**60) + whole[words + 8 :],
        "requires a buffer": whole[:24],
        "there twice": whole.replace(b"blk.1.attn_k.weight", b"blk.1.attn_v.weight"),
        "has 60000 axes, and GGML knows 4": whole[:axes]
        + struct.pack("<I", 60_000)
        + whole[axes + 4 :],
    }
    for message, content in damaged.items():
        path.write_bytes(content)
        with pytest.raises(StoreError, match=f"m.gguf cannot be read as a GGUF file: .*{message}"):
            inspect(path)
    generator = np.random.default_rng(0)
    for _ in range(300):  # whatever is changed in the header: a reading, or a refusal
        content = bytearray(whole)
        content[generator.integers(4, start)] = generator.integers(256)
        path.write_bytes(content)
        with suppress(StoreError):
            read_gguf(path)


@pytest.mark.parametrize("place", [0, 4, 32, -32])
def test_tensors_of_a_gguf_that_overlap_or_lie_apart_are_refused(tmp_path, place):
    """place: of the data of the second tensor, beside where those of the first end, or at 0."""
    tensors = {"blk.0.attn_q.weight": ("F32", 4, 32), "blk.0.attn_k.weight": ("F32", 4, 32)}
    path = write_gguf(tmp_path / "m.gguf", tensors | {"output_norm.weight": ("F32", 99)})
    whole = bytearray(path.read_bytes())
    at = whole.index(b"blk.0.attn_k.weight") + len("blk.0.attn_k.weight") + 4 + 2 * 8 + 4
    assert struct.unpack_from("<Q", whole, at) == (512,)
    struct.pack_into("<Q", whole, at, 512 + place if place else 0)
    path.write_bytes(whole)
    with pytest.raises(StoreError, match=r"attn_k.weight' begin at \d+, .* end at 512, rounded up"):
        inspect(path)


def test_an_alignment_that_llama_cpp_does_not_know_is_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_uint32("general.alignment", 48)
    writer.add_tensor("output.weight", np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(StoreError, match=r"general.alignment is 48, and must be a power of two"):
        inspect(tmp_path / "m.gguf")


# The commands


def test_the_command_prints_a_headline_and_the_table(command, tiny, tmp_path):
    folder = qbench.quantize(tiny(), "rtn", Scheme(4, 16)).save(tmp_path / "s")
    code, text, _ = command("inspect", folder)
    headline, columns, *lines = text.splitlines()
    assert (
        code == 0
        and "qbench (3), rtn: 5.250 bits per weight (stated: 4-bit codes) over 18,432 weights"
        in headline
    )
    assert columns.split() == ["item", "tensors", "bytes", "share", "bits", "per", "weight"]
    assert lines[0].split() == ["codes", "14", "9,216", *lines[0].split()[3:]] and lines[
        0
    ].endswith("4.0000")
    assert "not quantized  lm_head" in lines and lines[-1].startswith(
        "stated  method=rtn clip=search"
    )
    assert "bits=4 group_size=16" in lines[-1]
    code, text, _ = command("inspect", folder, "--json")
    found = json.loads(text)
    assert (
        code == 0
        and found["bits_per_weight"]["total"] == 5.25
        and found["items"][0]["name"] == "codes"
    )


def test_alike_layers_that_are_not_quantized_are_one_line(command, tiny, tmp_path):
    tiny().save_pretrained(tmp_path / "m")
    code, text, _ = command("inspect", tmp_path / "m")
    assert (
        code == 0
        and "unquantized: nothing is quantized; 32.000 bits per parameter of the whole" in text
    )
    assert "not quantized  model.layers.*.mlp.up_proj  (2 layers)" in text.splitlines()


def test_errors_are_one_sentence(command, tmp_path):
    code, text, error = command("inspect", tmp_path)
    assert code == 2 and not text and error.startswith("qbench: ") and "is no model" in error


@pytest.mark.parametrize("tensors", [{}, {"model.norm.weight": torch.zeros(0)}])
def test_a_model_without_a_weight_is_refused(command, tmp_path, tensors):
    folder = write(tmp_path / "m", None, tensors, num_hidden_layers=2)
    code, text, error = command("inspect", folder)
    assert code == 2 and not text
    assert f"holds no weight: its tensors, {len(tensors)} of them, have no numbers" in error


def test_verify_names_every_file_and_what_is_wrong(command, tiny, tmp_path):
    folder = qbench.quantize(tiny(), "rtn", Scheme(4, 16)).save(tmp_path / "s")
    code, text, _ = command("verify", folder)
    assert code == 0 and "ok    config.json" in text.splitlines() and "FAIL" not in text
    (folder / "config.json").write_text("{}")
    code, text, _ = command("verify", folder)
    assert (
        code == 1
        and "FAIL  config.json  differs from the hash that the index states" in text.splitlines()
    )
    assert "ok    model.safetensors" in text.splitlines()
    (folder / INDEX).unlink()
    code, _, error = command("verify", folder)
    assert code == 2 and f"{INDEX} cannot be read" in error


def test_a_flag_that_is_a_word_is_refused(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": "yes"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(StoreError, match="tie_word_embeddings is 'yes', which is neither"):
        inspect(folder)
