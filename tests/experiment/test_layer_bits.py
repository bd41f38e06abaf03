"""Bits by layer and of the head, from a flag or a file to records, tables and files."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml

import qbench
from qbench.errors import ConfigError
from qbench.experiment.cells import cell_command
from qbench.experiment.coverage import coverage
from qbench.experiment.grid import Grid
from qbench.experiment.grid_checks import check_request
from qbench.experiment.grid_file import read_grid
from qbench.experiment.store import read_records
from qbench.export import export
from qbench.files.shards import read_json
from qbench.formats import Dense, Uniform
from qbench.inspection.report import inspect
from qbench.scheme import LayerRule
from tiny_plans import tiny_plan
from tiny_runs import empty_picture, run_args

RULES = ("model.layers.0.*=8", "*.down_proj=4g16", "*.k_proj=skip")
FLAGS = tuple(word for rule in RULES for word in ("--layers", rule))


@pytest.mark.parametrize(
    "text",
    [
        "layers: {model.layers.0.*: 8, '*.down_proj': 4g16, '*.k_proj': skip}",
        "layers: [model.layers.0.*=8, '*.down_proj=4g16', '*.k_proj=skip']",
        "layers:\n- model.layers.0.*=8\n- '*.down_proj=4g16'\n- '*.k_proj=16'",
    ],
)
def test_a_file_says_what_flags_say(tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(f"{text}\nhead_bits: 8\n")
    grid = read_grid(path, {})
    assert grid.layers == tuple(map(LayerRule.parse, RULES)) and grid.head_bits == 8
    assert grid.layers == read_grid(None, {"layers": RULES}).layers
    assert read_grid(path, {"layers": ("*=4",)}).layers == (LayerRule("*", 4),)


def test_what_is_shown_is_a_file_that_makes_the_same_grid(command, tmp_path):
    done = command("config", "show", "--bits", "3,2.5", *FLAGS, "--head-bits", "8")
    assert done.code == 0, done.err
    path = tmp_path / "shown.yaml"
    path.write_text(done.out)
    grid = read_grid(path, {})
    assert (grid.layers, grid.head_bits) == (tuple(map(LayerRule.parse, RULES)), 8)
    assert grid.bits == (3, 2.5) and yaml.safe_load(done.out)["layers"]["*.k_proj"] == "16"


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"layers": ("*.oproj=4",)}, r"--layers '\*.oproj=4' matches no linear layer"),
        ({"layers": ("*.o_proj=12",)}, "'rtn' supports 2 to 8 bits, not bits=12 for a layer"),
        ({"head_bits": 9}, "--head-bits 9: the head is quantized by rtn, which supports 2 to 8"),
        (
            {"layers": ("*.o_proj=4g48",)},
            "group_size=48 does not divide the 64 inputs of model.lay",
        ),
        ({"methods": ("none",), "layers": ("*=4",)}, "--layers means nothing to the method 'none'"),
        ({"methods": ("hqq",), "head_bits": 4}, "has its package quantize all layers alike"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(tiny_folder, asked, message):
    with pytest.raises(ConfigError, match=message):
        grid = Grid(**{"model": (str(tiny_folder),), "methods": ("rtn",), **asked})
        check_request(grid)
        tiny_plan(tiny_folder, **{"methods": ("rtn",), **asked})


def test_a_cell_is_another_one_and_its_command_says_all(tiny_folder):
    plain, mixed = (
        tiny_plan(tiny_folder, "rtn", **asked) for asked in ({}, {"layers": RULES, "head_bits": 8})
    )
    assert not {cell.id for cell in plain.cells} & {cell.id for cell in mixed.cells}
    cell = mixed.cells[0]
    assert re.fullmatch(r"rtn 2b g32 \+3 rules [0-9a-f]{8} head 8b", cell.label)
    words = cell_command(mixed.grid, cell)
    assert "--layers '*.down_proj=4g16'" in words and "--head-bits 8" in words


def cautions(record):
    """Those about layers and sizes; that the mini data overlap is said beside them."""
    return [caution for caution in record.warnings if caution.kind != "overlap"]


def test_files_that_a_head_of_its_own_makes_larger_gain_nothing(
    command, tiny, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty_picture)
    model = tiny(tie_word_embeddings=True, vocab_size=4096, num_hidden_layers=1)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    size = 2 * sum(part.numel() for part in model.parameters())
    args = run_args(tmp_path / "model", tmp_path / "out", "rtn", "8", tasks=("wikitext",))
    assert command(*args, "--head-bits", "8").code == 0
    (record,) = read_records(tmp_path / "out")[0]
    assert record.coverage["original_bytes"] == size < record.coverage["bytes"]
    assert [caution.kind for caution in cautions(record)] == ["size"]
    folder = tmp_path / "out" / "artifacts" / record.cell.artifact
    read = qbench.load(folder, packed=False)  # as a model of its own
    facts = coverage(read.model, read.weights, folder, torch.bfloat16, head=read.manifest["head"])
    assert facts["original_bytes"] == size


@pytest.mark.slow
def test_a_run_counts_what_every_layer_has(command, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty_picture)
    records = {}
    for name, extra in (("whole", ()), ("paged", ("--memory", "4KB"))):
        out = tmp_path / name
        args = run_args(tiny_folder, out, "none,rtn,gptq", "3", tasks=("wikitext",))
        done = command(*args, *FLAGS, "--head-bits", "8", *extra)
        assert done.code == 0, done.err
        records[name] = {r.cell.method: r for r in read_records(out)[0] if r.cell.scheme}
    for method, record in records["whole"].items():
        folder = tmp_path / "whole" / "artifacts" / record.cell.artifact
        saved = qbench.load(folder)
        again = records["paged"][method]
        assert [s.value for s in again.scores] == [s.value for s in record.scores]
        assert record.coverage["bits"] == {"3": 5, "4": 1, "8": 7} == record.coverage["asked"]
        assert record.coverage["head"] == "8" and cautions(record) == []
        assert record.coverage["left"] == ["model.layers.1.self_attn.k_proj"]
        kinds = [type(weight) for weight in saved.weights.values()]
        assert (kinds.count(Uniform), kinds.count(Dense)) == (14, 1)
        measured = inspect(folder)
        assert measured.bits_per_weight["total"] == pytest.approx(
            record.bits_per_weight["total"], rel=1e-12
        )
        assert "3 bits in 5 layers, 4 bits in 1 layers, 8 bits in 8 layers" in measured.notes[0]
        assert saved.model.lm_head.__class__.__name__ == "QuantLinear"
        with pytest.raises(ConfigError, match="the head is quantized"):
            export(folder, "gptq", tmp_path / "exported")
    table = (tmp_path / "whole" / "leaderboard.csv").read_text()
    assert "model.layers.0.*=8, *.down_proj=4g16, *.k_proj=16, head 8b" in table


def test_a_tied_head_becomes_its_own_and_the_embedding_stays(tiny, tmp_path):
    tokens = torch.arange(40).view(2, 20)
    model = tiny(tie_word_embeddings=True)
    embedding = model.get_input_embeddings().weight.clone()
    quantized = qbench.quantize(model, "rtn", qbench.Scheme(4, 32, head_bits=3))
    assert quantized.manifest["head"]["untied"]
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    assert torch.equal(model.lm_head.weight, quantized.weights["lm_head"].dequantize())
    quantized.save(tmp_path / "saved")
    assert read_json(tmp_path / "saved" / "config.json")["tie_word_embeddings"] is False
    shared = qbench.quantize(tiny(tie_word_embeddings=True), "rtn", qbench.Scheme(4, 32))
    shared.save(tmp_path / "shared")
    head = quantized.weights["lm_head"]
    taken = sum(part.nbytes for part in head.to_tensors().values())
    sizes = [inspect(tmp_path / name).nbytes for name in ("saved", "shared")]
    assert sizes[0] - sizes[1] == taken
    for packed in (True, False):
        back = qbench.load(tmp_path / "saved", packed=packed).model
        assert torch.allclose(back(tokens).logits, model(tokens).logits, atol=1e-5)


def test_every_family_is_saved_with_layers_that_stay_and_its_head(family, tmp_path):
    model, tokens = family(), torch.arange(24).view(2, 12)
    scheme = qbench.Scheme(4, 16, rules=(LayerRule("*.0.*", 16),), head_bits=4)
    quantized = qbench.quantize(model, "rtn", scheme)
    quantized.save(tmp_path / "saved")
    back = qbench.load(tmp_path / "saved")
    assert {name for name, weight in back.weights.items() if type(weight) is Dense} == {
        name for name in quantized.weights if ".0." in name
    }
    with torch.no_grad():
        assert torch.allclose(back.model(tokens).logits, model(tokens).logits, atol=1e-5)


def test_a_weight_method_quantizes_the_head_where_it_has_the_bits(tiny):
    for bits, used in ((5, "alternating"), (8, "rtn")):
        quantized = qbench.quantize(tiny(), "alternating", qbench.Scheme(2, 32, head_bits=bits))
        facts = json.loads(json.dumps(quantized.manifest["head"]))
        assert facts == {"layer": "lm_head", "method": used, "bits": bits, "untied": False}


def test_a_fraction_is_divided_the_same_way_every_time(tiny):
    asked = qbench.Scheme.at(2.5, 32, rules=(LayerRule("*.k_proj", 6),))
    tokens = torch.randint(0, 259, (8, 16), generator=torch.Generator().manual_seed(0))
    made = [qbench.quantize(tiny(), "rtn", asked, tokens) for _ in range(2)]
    allocation = made[0].manifest["allocation"]
    assert allocation == made[1].manifest["allocation"]
    sizes = {name: weight.shape[0] * weight.shape[1] for name, weight in made[0].weights.items()}
    bits = {name: weight.bits for name, weight in made[0].weights.items()}
    divided = allocation["layers"]
    assert {name: bits[name] for name in divided} == divided
    assert {bits[name] for name in bits.keys() - divided.keys()} == {6}
    spent = sum(sizes[name] * width for name, width in divided.items())
    assert allocation["average"] == spent / sum(sizes[name] for name in divided)
    assert 2.4 < allocation["average"] <= 2.5 and len(set(divided.values())) > 1
    assert made[0].manifest["scheme"]["budget"] == 2.5


@pytest.mark.slow
def test_a_budget_is_met_beside_uniform_widths(command, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty_picture)
    args = run_args(tiny_folder, tmp_path, "none,rtn,gptq", "2,2.5,3", tasks=("divergence",))
    done = command(*args)
    assert done.code == 0, done.err
    for method in ("rtn", "gptq"):
        records = read_records(tmp_path)[0]
        own = {r.cell.scheme.width: r for r in records if r.cell.method == method}
        measured = {width: r.bits_per_weight["total"] for width, r in own.items()}
        between = (measured[2] + measured[3]) / 2
        assert abs(measured[2.5] - between) < 0.06
        mixed = own[2.5]
        assert mixed.cell.label == f"{method} 2.5b g32" and mixed.cell.calibration is not None
        assert mixed.coverage["bits"] == mixed.coverage["asked"] and cautions(mixed) == []
        assert len(mixed.coverage["allocation"]["layers"]) == 14
    assert "2.5" in (tmp_path / "leaderboard.csv").read_text()
    again = command(*args)
    assert again.code == 0 and "0 to run, 7 done" in again.out + again.err
    done = command(*args, "--memory", "4KB", "--out", tmp_path / "paged")
    assert "needs the gradients of the whole model" in done.out + done.err


def test_one_model_is_quantized_by_the_same_flags(command, tiny_folder, tmp_path):
    flags = ("--group-size", "32", "--layers", "*.k_proj=skip", "--head-bits", "4")
    calibration = ("--data", "mini", "--samples", "4", "--length", "32")
    args = ("quantize", "--model", tiny_folder, "--method", "rtn", "--bits", "2.5", *flags)
    done = command(*args, *calibration, "-o", tmp_path / "saved")
    assert done.code == 0, done.err
    saved = qbench.load(tmp_path / "saved")
    divided = saved.manifest["allocation"]["layers"]
    assert len(divided) == 12 and saved.weights["lm_head"].bits == 4
    assert f"{saved.bits_per_weight['total']:.3f} bits/weight" in done.out
    done = command("inspect", tmp_path / "saved")
    assert "full precision in 2 layers" in done.out and "k_proj  (2 layers)" in done.out
    assert command(*args[:-3], "--bits", "2.5", "--layers", "x=y", "-o", tmp_path / "no").code == 2
