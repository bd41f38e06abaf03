"""A model that is quantized already: it bears its own name and bits, and is not rounded again."""

from __future__ import annotations

import json

import pytest
import torch

import qbench
from qbench import Scheme
from qbench.checkpoint.folder import unquantized_tensors, write_model_folder
from qbench.export import export

ASKED = (
    "--data", "mini", "--tasks", "wikitext", "--set", "wikitext.length=64",
    "--set", "wikitext.limit=2", "--dtype", "float32",
)  # fmt: skip


def compressed(own, place):
    """A saved model of ours as a folder in compressed-tensors' layout, with equal weights."""
    loaded = qbench.load(own)
    layers = loaded.weights
    tensors = unquantized_tensors(loaded.model, layers)
    for name, weight in layers.items():
        codes = weight.unpacked()[0].flatten(1).long()
        shifts = 4 * torch.arange(8)  # of the eight codes of a word
        words = (codes.unflatten(1, (-1, 8)) << shifts).sum(2)
        tensors[f"{name}.weight_packed"] = words.to(torch.uint32).view(torch.int32)
        tensors[f"{name}.weight_scale"] = weight.scale
        tensors[f"{name}.weight_shape"] = torch.tensor(codes.shape)
    stated = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group"}
    group = {"targets": ["Linear"], "weights": stated | {"group_size": 32}}
    entry = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
    }
    config = loaded.model.config
    return write_model_folder(place, config, loaded.tokenizer, tensors, entry)


@pytest.fixture(scope="module")
def folders(tiny_folder, tmp_path_factory):
    """A saved model of ours, and the same in the layouts of other programs."""
    place = tmp_path_factory.mktemp("quantized")
    own = qbench.quantize(str(tiny_folder), "rtn", Scheme(4, 32, True)).save(place / "own")
    return {
        "own": own,
        "gptq": export(own, "gptq", place / "gptq"),
        "compressed": compressed(own, place / "compressed"),
    }


def records(out):
    return [json.loads(path.read_text()) for path in (out / "records").glob("*.json")]


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    "kind, name, bits",
    [
        ("own", "rtn 4b g32", 4.5),
        ("gptq", "gptq 4b g32", 4.625),
        ("compressed", "compressed-tensors 4b g32", 4.5),
    ],
)
def test_it_is_evaluated_under_its_own_name_and_measured_bits(
    command, folders, tmp_path, kind, name, bits
):
    out = tmp_path / "out"
    code, text, said = command(
        "run", "--model", folders[kind], "--methods", "none", *ASKED, "--out", out
    )
    assert code == 0, said
    (record,) = records(out)
    assert record["cell"]["stored_as"] == name
    assert record["bits_per_weight"]["total"] >= bits - 1e-9
    assert record["bits_per_weight"]["total"] < bits + 1
    assert "unquantized" not in text and name in " ".join(text.split())


@pytest.mark.usefixtures("without_pictures")
def test_it_is_not_quantized_again_unless_asked(command, folders, tmp_path):
    asked = ("run", "--model", folders["own"], "--methods", "rtn", "--bits", "3", *ASKED)
    asked += ("--no-latency",)
    code, _, said = command(*asked, "--group-size", "32", "--out", tmp_path / "out")
    assert code == 2
    assert "is quantized already (rtn 4b g32)" in " ".join(said.split())
    assert not (tmp_path / "out" / "records").exists()
    code, _, said = command(*asked, "--group-size", "32", "--out", tmp_path / "out", "--requantize")
    assert code == 0, said
    (record,) = records(tmp_path / "out")
    assert record["cell"]["method"] == "rtn" and "--requantize" in record["command"]


def test_other_programs_layouts_score_as_what_they_were_made_from(command, folders):
    scores = {}
    for kind, folder in folders.items():
        code, scores[kind], said = command("eval", folder, *ASKED)
        assert code == 0, said
    assert "perplexity" in scores["own"]
    assert scores["gptq"] == scores["own"] == scores["compressed"]
