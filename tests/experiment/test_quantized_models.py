"""A model that is quantized already: it bears its own name and bits, and is not rounded again."""

from __future__ import annotations

import json
import re

import pytest
import torch

import qbench
from qbench import Scheme
from qbench.checkpoint.write_folder import unquantized_tensors, write_model_folder
from qbench.export import export

ASKED = (
    "--data", "mini", "--tasks", "wikitext", "--set", "wikitext.length=64",
    "--set", "wikitext.limit=2", "--dtype", "float32",
)  # fmt: skip
COMPARED = (
    "--data", "mini", "--set", "divergence.length=64", "--set", "divergence.limit=2",
    "--dtype", "float32", "--no-latency",
)  # fmt: skip
BOTH = ("--tasks", "wikitext,divergence")


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


def files(out):
    """What a report has written, by the names of its files."""
    kinds = (".csv", ".jsonl", ".md", ".html", ".tex")
    found = [path for path in out.rglob("*") if path.suffix in kinds]
    return {path.relative_to(out).as_posix(): path.read_text() for path in found}


@pytest.mark.usefixtures("without_pictures")
def test_it_is_nowhere_said_not_to_diverge_from_the_unquantized_model(command, folders, tmp_path):
    asked = ("run", "--model", folders["own"], *COMPARED)
    out = tmp_path / "out"
    code, text, said = command(*asked, "--methods", "none", *ASKED, *BOTH, "--out", out)
    assert code == 0, said
    assert "divergence is left out for" in " ".join(said.split())
    written = files(out)
    assert "perplexity" in text and "perplexity" in written["leaderboard.csv"]
    for told in (text, *written.values()):
        assert not re.search("kl_|top1_|KL|is rounding", told)
    code, _, said = command(*asked, "--methods", "none", "--tasks", "divergence", "--out", out)
    assert code == 2 and "eval FOLDER --unquantized MODEL" in " ".join(said.split())


@pytest.mark.usefixtures("without_pictures")
def test_what_is_quantized_again_diverges_from_the_model_as_it_is_stored(
    command, folders, tmp_path
):
    out = tmp_path / "out"
    asked = ("run", "--model", folders["own"], *COMPARED, *ASKED, *BOTH, "--requantize")
    asked += ("--methods", "none,rtn", "--bits", "3", "--group-size", "32", "--out", out)
    code, text, said = command(*asked)
    assert code == 0, said
    as_stored = "divergences are from the model as it is stored, and not from an unquantized one"
    written = files(out)
    (rounded,) = [row for row in records(out) if row["cell"]["scheme"]]
    page = written.pop(f"cells/{rounded['id']}.html")
    assert "kl_mean" in page and "from the model as stored" in page
    for told in (text, written["leaderboard.md"], written["index.html"]):
        assert as_stored in " ".join(told.split())
        assert "quantized already (rtn 4b g32)" in " ".join(told.split())
    for told in (page, text):
        assert "unquantized" not in " ".join(told.split()).replace(as_stored, "")
    rows = [json.loads(line) for line in written["leaderboard.jsonl"].splitlines()]
    assert {row["stored_as"] for row in rows} == {"rtn 4b g32"}
    assert {row["cell"] for row in rows if row["metric"] == "kl_mean"} == {rounded["id"]}


def test_other_programs_layouts_score_as_what_they_were_made_from(command, folders):
    scores = {}
    for kind, folder in folders.items():
        code, scores[kind], said = command("eval", folder, *ASKED)
        assert code == 0, said
    assert "perplexity" in scores["own"]
    assert scores["gptq"] == scores["own"] == scores["compressed"]
