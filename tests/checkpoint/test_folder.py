"""Saved folders: packed, exact, whole or not at all, read by transformers, or refused as wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import qbench
from families import FAMILIES, WIDE, family_model
from fresh_python import run_python
from methods_of_formats import METHOD_OF_FORMAT, SteppedAlternating, SteppedRTN, method_of_format
from qbench import Scheme
from qbench.checkpoint.packed_linear import QuantLinear
from qbench.checkpoint.paged import open_paged
from qbench.checkpoint.write_folder import save_checkpoint
from qbench.errors import ConfigError, StoreError
from qbench.files.shards import INDEX
from qbench.files.written_folder import verify
from qbench.models.loading import load_weights
from qbench.models.source import find_model
from qbench.scheme import LayerRule
from samples import PROMPT, normal, token_ids

HYBRID = {  # multipliers unlike 1, so that a buffer of them is not one of ones
    "falcon-h1": (
        "FalconH1Config",
        WIDE
        | {"head_dim": 16, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}
        | {"mamba_d_state": 8, "mamba_chunk_size": 8, "ssm_multipliers": [0.5, 2.0, 3.0, 0.25, 4.0]}
        | {"tie_word_embeddings": False, "pad_token_id": 0},
    )
}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module", params=METHOD_OF_FORMAT)
def made(request, tiny):
    return in_format(request.param, tiny(attention_bias=True, tie_word_embeddings=True))


def in_format(name, model):
    """The model, quantized to the format of that name."""
    tokens = token_ids(2, 32, vocabulary=256)
    return qbench.quantize(model, method_of_format(name), Scheme(3, 16), tokens)


@pytest.fixture(scope="module")
def saved(made, tmp_path_factory):
    return made.save(tmp_path_factory.mktemp("saved") / made.manifest["method"])


def test_a_loaded_model_is_packed_and_computes_the_same(made, saved):
    loaded = qbench.load(saved, "float32")
    layer = loaded.model.model.layers[0].mlp.up_proj
    assert (
        isinstance(layer, QuantLinear)
        and layer.kind == made.weights["model.layers.0.mlp.up_proj"].format
    )
    assert torch.equal(loaded.model(PROMPT).logits, made.model(PROMPT).logits)
    stored = {name for name in loaded.model.state_dict() if name != "lm_head.weight"}
    assert stored == set(json.loads((saved / INDEX).read_text())["weight_map"]), (
        "state dict = the file's tensors"
    )
    assert torch.equal(
        qbench.load(saved, packed=False).model(PROMPT).logits, made.model(PROMPT).logits
    )


@pytest.mark.parametrize("packed", [True, False])
def test_saving_what_was_loaded_gives_the_same_bytes(saved, tmp_path, packed):
    assert files(qbench.load(saved, packed=packed).save(tmp_path / "again")) == files(saved)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_transformers_loads_it_exactly(made, saved, tmp_path, dtype):
    model = AutoModelForCausalLM.from_pretrained(saved, dtype=dtype)
    weights = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, QuantLinear)
    }
    assert weights.keys() == made.weights.keys()
    for name, layer in weights.items():
        assert layer.tensors().keys() == made.weights[name].to_tensors().keys()
        assert all(
            torch.equal(part, made.weights[name].to_tensors()[key])
            for key, part in layer.tensors().items()
        )
        assert all(
            part.dtype == made.weights[name].to_tensors()[key].dtype
            for key, part in layer.tensors().items()
        )
    expected = qbench.load(saved, str(dtype).removeprefix("torch.")).model(PROMPT).logits
    assert torch.equal(model(PROMPT).logits, expected)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(qbench.load(tmp_path / "again").model(PROMPT).logits, expected)


def test_every_family_is_loaded_packed_and_exactly(family, tmp_path):
    model, prompt = family(), torch.arange(20).view(1, 20)
    made = qbench.quantize(model, "rtn", Scheme(4, 16))
    made.save(tmp_path / "saved")
    for found in (
        qbench.load(tmp_path / "saved", "float32"),
        qbench.load(tmp_path / "saved", "float32", packed=False),
    ):
        assert torch.equal(found.model(prompt).logits, made.model(prompt).logits)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert sum(isinstance(layer, QuantLinear) for layer in loaded.modules()) == len(made.weights)
    assert torch.equal(loaded(prompt).logits, made.model(prompt).logits)


@torch.no_grad()
@pytest.mark.parametrize("before", [False, True], ids=["said", "folders-that-say-tied"])
def test_a_head_of_its_own_stays_where_the_config_ties_it(tiny, tokenizer, tmp_path, before):
    """transformers 5 does not tie what the files hold as two different tensors."""
    model = tiny(hidden_size=64)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    say_tied(tmp_path / "model")
    source = find_model(str(tmp_path / "model"))
    assert torch.equal(load_weights(source, "float32")(PROMPT).logits, model(PROMPT).logits)
    assert torch.equal(open_paged(source, "float32").model(PROMPT).logits, model(PROMPT).logits)
    for method in ("none", "rtn"):
        made = qbench.quantize(str(tmp_path / "model"), method, Scheme(3, 16))
        folder = made.save(tmp_path / method)
        config = json.loads((folder / "config.json").read_text())
        assert config["tie_word_embeddings"] is False
        if before:
            say_tied(folder)
        expected = made.model(PROMPT).logits
        loaded = (
            qbench.load(folder, "float32").model,
            qbench.load(folder, "float32", packed=False).model,
            open_paged(find_model(str(folder)), "float32").model,
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        )
        for again in loaded:
            assert torch.equal(again(PROMPT).logits, expected)
        loaded[1].save_pretrained(tmp_path / f"{method}-again")
        assert torch.equal(
            load_weights(find_model(str(tmp_path / f"{method}-again")), "float32")(PROMPT).logits,
            expected,
        )


def say_tied(folder):
    place = folder / "config.json"
    config = json.loads(place.read_text()) | {"tie_word_embeddings": True}
    place.write_text(json.dumps(config))


@torch.no_grad()
@pytest.mark.parametrize("packed", [True, False])
def test_a_quantized_head_stays_where_the_config_ties_it(tiny, tmp_path, packed):
    made = qbench.quantize(tiny(tie_word_embeddings=True), "rtn", Scheme(3, 16, head_bits=4))
    say_tied(made.save(tmp_path / "saved"))
    loaded = qbench.load(tmp_path / "saved", "float32", packed=packed).model
    assert torch.equal(loaded(PROMPT).logits, made.model(PROMPT).logits)
    assert loaded.config.tie_word_embeddings is False


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["falcon-h1", "llama", "gemma3-mixed-masks", "gpt2-conv1d", "mixtral-experts"]
)
def test_transformers_computes_the_buffers_that_are_in_no_file(name, tmp_path):
    """Whichever module computes them: in Falcon-H1 it is one without tensors of its own."""
    qbench.quantize(family_model(*(FAMILIES | HYBRID)[name]), "rtn", Scheme(4, 16)).save(
        tmp_path / "saved"
    )
    expected = qbench.load(tmp_path / "saved", "float32").model
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    buffers = dict(loaded.named_buffers())
    assert buffers.keys() == dict(expected.named_buffers()).keys()
    for key, buffer in expected.named_buffers():
        assert torch.equal(buffers[key], buffer), key
    assert torch.equal(loaded(PROMPT).logits, expected(PROMPT).logits)


LOADING = """
import sys
from transformers import AutoModelForCausalLM
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except RuntimeError:
        print(folder)
"""


@pytest.mark.slow
def test_without_the_plug_in_transformers_refuses(tiny, tmp_path):
    """Random weights must never be loaded; a dense folder has none, and needs no plug-in."""
    folders = []
    for number, name in enumerate(METHOD_OF_FORMAT):
        if name != "dense":
            folders.append(str(in_format(name, tiny()).save(tmp_path / f"saved-{number}")))
    done = run_python("-c", LOADING, *folders)
    assert done.returncode == 0 and done.stdout.split() == folders, done.stderr


def test_a_device_map_places_the_packed_layers(made, saved):
    model = AutoModelForCausalLM.from_pretrained(saved, device_map={"": "cpu"})
    assert torch.equal(model(PROMPT).logits, made.model(PROMPT).logits)


def test_casting_a_model_leaves_the_parts_alone(made, saved):
    loaded = qbench.load(saved).model.to(torch.bfloat16).half().to("cpu")
    for name, layer in loaded.named_modules():
        if isinstance(layer, QuantLinear):
            parts = made.weights[name].to_tensors()
            assert all(torch.equal(part, parts[key]) for key, part in layer.tensors().items())
            assert layer.bias is None or layer.bias.dtype == torch.float16
    assert loaded(PROMPT).logits.dtype == torch.float16


@pytest.mark.slow
def test_compiled_without_a_graph_break(made, saved):
    torch._dynamo.reset()
    layer = qbench.load(saved).model.model.layers[0].mlp
    x = normal(2, 3, 32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))


def test_the_operator_keeps_its_promises(made):
    weight = made.weights["model.layers.0.mlp.up_proj"]
    layer = QuantLinear(weight, torch.randn(64))
    x = torch.randn(3, 32, requires_grad=True)
    parts = list(layer.tensors().values())
    torch.library.opcheck(torch.ops.qbench.linear.default, (x, parts, layer.bias, layer.call))
    layer(x).sum().backward()
    dense = nn.functional.linear(y := x.detach().requires_grad_(), weight.dequantize())
    dense.sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    with pytest.raises(
        ConfigError, match=r"x \(3, 31\) torch.float32 does not fit a weight of shape \(64, 32\)"
    ):
        layer(torch.randn(3, 31))


def test_large_models_are_sharded(tiny, tmp_path):
    made = qbench.quantize(tiny(), "rtn", Scheme(4, 16))
    folder = save_checkpoint(
        tmp_path / "s", made.model, None, made.weights, made.manifest, {}, shard_bytes=10_000
    )
    assert len(list(folder.glob("model-0*.safetensors"))) > 3 and set(verify(folder).values()) == {
        None
    }
    assert torch.equal(qbench.load(folder).model(PROMPT).logits, made.model(PROMPT).logits)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(model(PROMPT).logits, made.model(PROMPT).logits)


def test_half_precision_only_where_it_loses_nothing(tiny, tmp_path):
    model = tiny()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    model.model.norm.weight.data += 1e-4
    qbench.quantize(model, "rtn", Scheme(4, 16)).save(tmp_path / "s")
    loaded = qbench.load(tmp_path / "s", "float32")
    assert torch.equal(loaded.model(PROMPT).logits, model(PROMPT).logits)
    assert json.loads((tmp_path / "s" / "config.json").read_text())["dtype"] == "bfloat16"
    assert qbench.load(tmp_path / "s").model.dtype == torch.bfloat16


def test_the_card_tells_what_single_layers_have(tiny, tmp_path):
    texts = ("*.0.*.k_proj=skip", "*.q_proj=4", "*.v_proj=4g32", "*.o_proj=8gchannel")
    scheme = Scheme(3, 16, rules=tuple(map(LayerRule.parse, texts)))
    qbench.quantize(tiny(), "rtn", scheme).save(tmp_path / "m")
    card = (tmp_path / "m" / "README.md").read_text().replace("\\", "")
    assert (
        "3-bit codes, groups: 16, *.0.*.k_proj: as they are, *.q_proj: 4 bits, "
        "*.v_proj: 4 bits in groups of 32, *.o_proj: 8 bits in one group per channel:"
    ) in card.replace("\n", " ").replace("&#42;", "*")


def test_the_card_tells_what_it_is(tiny, tokenizer, tmp_path):
    folder = qbench.quantize(
        tiny(), "gptq", Scheme(3, 16), torch.ones(2, 9, dtype=torch.long)
    ).save(tmp_path / "s")
    card = (folder / "README.md").read_text()
    assert (
        "`gptq`, 3-bit codes, groups: 16" in card
        and "bits per weight**, counted from the file: codes 3.000" in card
    )
    assert '"tokens": [\n      2,\n      9\n    ]' in card and "import qbench" in card


# Folders of the format's version before


def test_a_folder_of_version_2_is_read_and_saved_as_version_3(tmp_path):
    """Uniform and binary layers, of before scales could be integers; the logits are its own."""
    old = Path(__file__).parent / "version_2"
    expected = torch.tensor([0.02317484, 0.00134906, -0.05978778, 0.04073974, 0.01268493])
    assert set(verify(old).values()) == {None}
    for packed in (True, False):
        model = qbench.load(old, "float32", packed=packed).model
        found = model(torch.arange(8)[None]).logits[0, -1, :5]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    loaded = AutoModelForCausalLM.from_pretrained(old, dtype=torch.float32)
    found = loaded(torch.arange(8)[None]).logits[0, -1, :5]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    again = qbench.load(old).save(tmp_path / "again")
    stored = [load_file(folder / "model.safetensors") for folder in (old, again)]
    assert all(torch.equal(tensor, stored[1][name]) for name, tensor in stored[0].items())
    entries = [
        json.loads((folder / "config.json").read_text())["quantization_config"]
        for folder in (old, again)
    ]
    assert [entry.pop("version") for entry in entries] == [2, 3] and entries[0] == entries[1]


# Damage


def test_a_step_that_makes_infinite_scales_is_refused(tiny, tmp_path):
    made = qbench.quantize(tiny(), SteppedAlternating(), Scheme(3, 8))
    name, weight = next(iter(made.weights.items()))
    alpha, shift = weight.stored_alpha, weight.stored_shift
    span = torch.full_like(alpha.span, 60000.0)
    alpha, shift = (replace(part, span=span, places=1) for part in (alpha, shift))
    made.weights[name] = replace(weight, stored_alpha=alpha, stored_shift=shift)
    folder = made.save(tmp_path / "s")
    with pytest.raises(StoreError, match=f"{name}.(alpha|shift) is not finite"):
        qbench.load(folder)


def edit(folder, change, file="config.json"):
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def config(change):
    return lambda folder: edit(folder, lambda content: change(content["quantization_config"]))


def index(change):
    return lambda folder: edit(folder, lambda content: change(content["weight_map"]), INDEX)


DAMAGE = {
    "zeros for weights": (
        lambda f: (f / "model.safetensors").write_bytes(b"\0" * 20),
        "cannot be read",
    ),
    "half the weights": (lambda f: os.truncate(f / "model.safetensors", 9000), "cannot be read"),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "model.safetensors cannot be read",
    ),
    "half a config": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "another config": (
        lambda f: (f / "config.json").write_text("{}"),
        "not the config of a model quantized by qbench",
    ),
    "a later version": (
        config(lambda c: c.update(version=99)),
        "format version 99; this qbench reads versions 2 and 3",
    ),
    "no groups": (config(lambda c: c.update(groups=[])), "proj.weight .torch.uint8. belongs to"),
    "an unknown format": (
        config(lambda c: c["groups"][0].update(format="ternary")),
        "unknown weight format 'ternary'",
    ),
    "an unknown dtype": (
        config(lambda c: c["groups"][0]["parts"]["codes"].update(dtype="int3")),
        "states dtype 'int3'",
    ),
    "a huge shape": (
        config(lambda c: c["groups"][0]["parts"]["codes"].update(shape=[2**40, 1])),
        "less than 2147483648",
    ),
    "a wrong shape": (
        config(lambda c: c["groups"][0]["parts"]["scale"].update(shape=[1, 1])),
        "part 'scale' of a weight",
    ),
    "a wrong group size": (
        config(lambda c: c["groups"][0]["spec"].update(group_size=0)),
        "does not divide",
    ),
    "a word for bits": (
        config(lambda c: c["groups"][0]["spec"].update(bits="4")),
        "states bits='4' for model.layers.0",
    ),
    "a strange entry": (
        config(lambda c: c["groups"][0].update(code="import os")),
        "Extra inputs are not permitted",
    ),
    "a layer twice": (
        config(lambda c: c["groups"][0]["modules"].append(c["groups"][0]["modules"][0])),
        "twice",
    ),
    "a layer that is not": (
        config(lambda c: c["groups"][0]["modules"].append("model.x")),
        "model.x.weight is missing",
    ),
    "a part in the files alone": (
        config(lambda c: c["groups"][0]["parts"].pop("zero_point")),
        "zero_point is no part of that layer in its config.json",
    ),
    "a part that no format has": (
        config(lambda c: c["groups"][0]["parts"].update(x=c["groups"][0]["parts"]["scale"])),
        "states a part 'x' of .*, which no 'uniform' weight",
    ),
    "more layers than files": (
        lambda f: edit(f, lambda c: c.update(num_hidden_layers=3)),
        "missing .'model.layers.2",
    ),
    "no norm": (lambda f: drop(f, "model.norm.weight"), "missing .'model.norm.weight'"),
    "no head": (lambda f: drop(f, "lm_head.weight"), "missing .'lm_head.weight'"),
    "no scale": (
        lambda f: drop(f, "model.layers.1.mlp.up_proj.scale"),
        "tensor model.layers.1.mlp.up_proj.scale is missing",
    ),
    "a path upwards": (
        index(lambda m: m.update(a="../model.safetensors")),
        "names the file '../model.safetensors'",
    ),
    "an absolute path": (
        index(lambda m: m.update(a="/etc/model.safetensors")),
        "only NAME.safetensors in the folder",
    ),
    "a tensor too few": (
        index(lambda m: m.pop("model.norm.weight")),
        "'model.norm.weight' is missing, unexpected",
    ),
    "a tensor too many": (
        index(lambda m: m.update({"x.weight": "model.safetensors"})),
        "'x.weight' is missing",
    ),
    "too many layers": (
        lambda f: edit(f, lambda c: c.update(num_hidden_layers=10**9)),
        "num_hidden_layers=1000000000",
    ),
    "another width": (lambda f: edit(f, lambda c: c.update(hidden_size=48)), "in the model, but"),
    "no model type": (
        lambda f: edit(f, lambda c: c.update(model_type="nothing")),
        "describes no model",
    ),
    "a negative size": (lambda f: edit(f, lambda c: c.update(vocab_size=-5)), "describes no model"),
}


def drop(folder, *names):
    """Take tensors out of the file and out of the index, as if the folder had never had them."""
    tensors = load_file(folder / "model.safetensors")
    for name in names:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder, lambda content: [content["weight_map"].pop(name) for name in names], INDEX)


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_folder_is_refused(tiny, tmp_path, case):
    damage, message = DAMAGE[case]
    folder = qbench.quantize(tiny(), "rtn", Scheme(4, 16)).save(tmp_path / "saved")
    damage(folder)
    with pytest.raises(StoreError, match=message):
        qbench.load(folder)


@pytest.mark.parametrize(
    "case",
    [
        "a part in the files alone",
        "more layers than files",
        "no norm",
        "no head",
        "no scale",
        "a word for bits",
    ],
)
def test_transformers_loads_no_folder_with_gaps(tiny, tmp_path, case):
    damage, message = DAMAGE[case]
    folder = qbench.quantize(tiny(), "rtn", Scheme(4, 16)).save(tmp_path / "saved")
    damage(folder)
    with pytest.raises(StoreError, match=message):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_tied_head_and_another_kind_of_head_are_no_gaps(tiny, tmp_path):
    folder = qbench.quantize(tiny(tie_word_embeddings=True), "rtn", Scheme(4, 16)).save(
        tmp_path / "saved"
    )
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    AutoModelForCausalLM.from_pretrained(folder)
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    drop(folder, "model.norm.weight")
    with pytest.raises(StoreError, match=r"missing .'model.norm.weight'"):
        AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)


SETTINGS = [  # of formats, that are no settings
    ("rtn", "bits", 3.0),
    ("rtn", "bits", True),
    ("rtn", "bits", None),
    ("rtn", "bits", float("nan")),
    ("rtn", "bits", -3),
    ("rtn", "bits", 10**30),
    ("rtn", "bits", 2**30),
    ("rtn", "bits", 0),
    ("rtn", "in_features", "32"),
    ("rtn", "group_size", 16.0),
    ("rtn", "group_size", [16]),
    ("stepped rtn", "scale_bits", 6.0),
    ("stepped rtn", "scale_places", "6"),
    ("alternating", "in_features", 32.0),
    ("stepped alternating", "alpha_bits", [6, 5.0, 4]),
    ("unisvq", "features", "signs "),
    ("unisvq", "blocks", [32.0, 32]),
    ("unisvq", "blocks", {"32": 32}),
    ("unisvq", "blocks", 32),
]


@pytest.mark.parametrize("method, setting, value", SETTINGS)
def test_a_setting_that_is_none_is_refused_in_a_sentence(tiny, tmp_path, method, setting, value):
    made = {"stepped rtn": SteppedRTN(), "stepped alternating": SteppedAlternating()}
    bits, tokens = (2, token_ids(2, 32, vocabulary=256)) if method == "unisvq" else (3, None)
    scheme = Scheme(bits, None if method == "unisvq" else 8)
    folder = qbench.quantize(tiny(), made.get(method, method), scheme, tokens).save(tmp_path / "s")
    assert qbench.load(folder)
    config(lambda c: [group["spec"].update({setting: value}) for group in c["groups"]])(folder)
    with pytest.raises(StoreError, match=setting) as refused:
        qbench.load(folder)
    with pytest.raises(StoreError):
        AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(StoreError):
        open_paged(find_model(str(folder)), "float32")
    assert "'<'" not in str(refused.value) and "operand" not in str(refused.value)


def test_a_link_out_of_the_folder_is_refused(tiny, tmp_path):
    folder = qbench.quantize(tiny(), "rtn", Scheme(4, 16)).save(tmp_path / "saved")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(StoreError, match="is a link out of its folder"):
        qbench.load(folder)


def test_scales_that_are_not_finite_are_refused(tiny, tmp_path):
    made = qbench.quantize(tiny(), "rtn", Scheme(4, 16))
    made.weights["model.layers.1.mlp.up_proj"].scale[0, 0] = float("nan")
    with pytest.raises(StoreError, match=r"model.layers.1.mlp.up_proj.scale is not finite"):
        qbench.load(made.save(tmp_path / "saved"))


def test_verify_finds_every_change(tiny, tokenizer, tmp_path):
    folder = qbench.quantize(tiny(), "rtn", Scheme(4, 16), tokenizer=tokenizer).save(
        tmp_path / "saved"
    )
    assert set(verify(folder).values()) == {None} and "config.json" in verify(folder)
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    (folder / "tokenizer.json").unlink()
    (folder / "other.safetensors").write_bytes(b"")
    wrong = {name: problem for name, problem in verify(folder).items() if problem}
    assert wrong.keys() == {"model.safetensors", "tokenizer.json", "other.safetensors"}
    assert wrong["model.safetensors"] == "differs from the hash that the index states"


# Atomic


def test_saving_replaces_an_older_folder_and_leaves_nothing_beside(tiny, tmp_path):
    for bits in (2, 4):
        qbench.quantize(tiny(), "rtn", Scheme(bits, 16)).save(tmp_path / "saved")
    assert qbench.load(tmp_path / "saved").manifest["scheme"]["bits"] == 4
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


SAVING = """
import os, sys, qbench
models = [qbench.quantize(sys.argv[1], 'rtn', qbench.Scheme(bits, 32)) for bits in (2, 4)]
for line in sys.stdin:
    child = os.fork()
    if not child:
        while True:
            for model in models:
                model.save(sys.argv[2])
    print(child, flush=True)
    os.waitpid(child, 0)
    print('dead', flush=True)
"""


@pytest.mark.slow
def test_killed_while_saving_there_is_the_old_folder_or_the_new_one(tiny_folder, tmp_path):
    seen, saved = set(), tmp_path / "saved"
    command = [sys.executable, "-P", "-c", SAVING, str(tiny_folder), str(saved)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # threads do not survive a fork
    with subprocess.Popen(command, **streams, env=one_thread) as process:
        for wait in (0.03, 0.12):
            print("save", file=process.stdin, flush=True)
            child = int(process.stdout.readline())
            while not saved.exists():
                time.sleep(0.01)
            time.sleep(wait)
            os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "dead\n"
            assert set(verify(saved).values()) == {None}
            seen.add(qbench.load(saved).manifest["scheme"]["bits"])
    assert seen <= {2, 4}


def test_what_others_have_written_is_never_replaced(tiny, tmp_path):
    made = qbench.quantize(tiny(), "rtn", Scheme(4, 16))
    tiny().save_pretrained(tmp_path / "model")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "ideas.txt").write_text("keep me")
    for name in ("model", "notes"):
        before = files(tmp_path / name)
        with pytest.raises(StoreError, match=f"{name} is there and was not written by qbench"):
            made.save(tmp_path / name)
        assert files(tmp_path / name) == before
    (tmp_path / "empty").mkdir()
    assert set(verify(made.save(tmp_path / "empty")).values()) == {None}


def test_a_folder_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        qbench.quantize(tiny(), "rtn", Scheme(4, 16)).save(tmp_path / "file" / "saved")
