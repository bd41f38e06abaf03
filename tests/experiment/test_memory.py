"""A cell whose model does not fit is run block by block, and comes to the same numbers."""

from __future__ import annotations

import json
import re

import pytest

from qbench.environment import available_memory, bytes_of
from qbench.errors import ConfigError
from qbench.experiment.back_off import present_memory
from qbench.experiment.grid import Grid
from qbench.experiment.memory import Memory
from qbench.experiment.store import read_records
from qbench.files.shards import Shards
from qbench.models.paging import is_paged
from qbench.models.source import find_model
from tiny_runs import empty_picture, run_args

SMALL = "4KB"  # less than any model, or its hidden states


@pytest.mark.parametrize(
    "text, size", [("8GB", 8 * 10**9), ("1.5 gb", 15 * 10**8), ("500MB", 5 * 10**8), (4096, 4096)]
)
def test_sizes(text, size):
    assert bytes_of(text) == size == Grid(memory=text).memory


@pytest.mark.parametrize("text", ["8 cows", "0GB", "-1GB", "0.1", ""])
def test_what_is_no_size_is_one_sentence(text):
    with pytest.raises(ConfigError, match=f"memory {re.escape(repr(text))} is no size"):
        Grid(memory=text)


def test_only_a_model_that_is_too_large_is_paged(tiny_folder, tmp_path):
    source = find_model(str(tiny_folder))
    assert is_paged(Memory(1000, tmp_path).read(source, "float32").model)
    for limit in (2 * 10**9, None):
        model = Memory(limit, tmp_path).read(source, "float32").model
        assert not is_paged(model)


def test_the_limits_of_a_process_count(monkeypatch):
    resource = pytest.importorskip("resource")
    free = available_memory()
    assert free > 0
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10**6, 10**6))
    assert available_memory() == 0, "more is in use already"
    assert present_memory("cpu") == (0, 10**6)


def test_the_limits_of_a_group_count(monkeypatch, tmp_path):
    monkeypatch.setattr("qbench.environment._GROUP", tmp_path)
    monkeypatch.setattr("qbench.environment._OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("0::/slurm/job_7\n")
    job = tmp_path / "slurm" / "job_7"
    job.mkdir(parents=True)
    free = available_memory()
    for folder, limit in ((job, "max"), (job.parent, "1000")):
        assert available_memory() == pytest.approx(free, rel=0.5)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text("700\n")
        (folder / "memory.stat").write_text("anon 100\nfile 600\n")
    assert available_memory() == 900, "what it holds of files can be dropped"


def test_the_limits_of_a_group_of_the_first_version_count(monkeypatch, tmp_path):
    monkeypatch.setattr("qbench.environment._GROUP", tmp_path)
    monkeypatch.setattr("qbench.environment._OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("5:devices:/\n4:memory:/job\n0::/\n")
    folder = tmp_path / "memory" / "job"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("500\n")
    (folder / "memory.usage_in_bytes").write_text("300\n")
    (folder / "memory.stat").write_text("cache 90\ntotal_cache 100\n")
    assert available_memory() == 300


@pytest.fixture(scope="module")
def runs(command, tiny_folder, tmp_path_factory):
    """The folders of two runs of one grid, of which the second has no memory for the model."""
    place = tmp_path_factory.mktemp("runs")
    args = ["--set", "flexround.epochs=1"]
    methods = "none,rtn,gptq,flexround"
    tasks = ("wikitext", "divergence", "arc_easy")
    told = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", empty_picture)
        for name, extra in (("whole", args), ("pieces", [*args, "--memory", SMALL])):
            out = place / name
            done = command(*run_args(tiny_folder, out, methods, "3", extra, tasks))
            assert done.code == 0, done.err
            told[name] = done.out + done.err
    return place / "whole", place / "pieces", told


@pytest.mark.slow
def test_scores_and_items_are_equal_bit_for_bit(runs):
    whole, pieces, told = runs
    assert "does not fit, and is read block by block" in told["pieces"]
    assert "block by block" not in told["whole"]
    expected = {record.id: record for record in read_records(whole)[0]}
    records = {record.id: record for record in read_records(pieces)[0]}
    assert records.keys() == expected.keys() and len(records) == 4
    for name, record in records.items():
        assert record.status == "ok"
        same = expected[name]
        assert record.scores == same.scores
        assert {score.metric for score in record.scores} >= {"perplexity", "kl_mean", "kl_noise"}
        assert (record.bits_per_weight, record.log) == (same.bits_per_weight, same.log)
        assert record.coverage | {"bytes": 0} == same.coverage | {"bytes": 0}
        for score in record.scores:
            assert (pieces / score.samples).read_bytes() == (whole / score.samples).read_bytes()


@pytest.mark.slow
def test_artifacts_hold_the_same_tensors(runs):
    whole, pieces, _ = runs
    folders = sorted((whole / "artifacts").iterdir())
    assert len(folders) == 3
    for folder in folders:
        first, second = Shards(folder), Shards(pieces / "artifacts" / folder.name)
        assert first.entries.keys() == second.entries.keys()
        for name in first.entries:
            a, b = first.tensor(name), second.tensor(name)
            assert a.dtype == b.dtype and a.equal(b), name
        configs = [json.loads((f / "config.json").read_text()) for f in (folder, second.folder)]
        for config in configs:
            config["quantization_config"].pop("costs")
        assert configs[0] == configs[1]
        assert len(list(second.folder.glob("*.safetensors"))) == 3, "a file for each block"


@pytest.mark.slow
def test_single_commands_do_the_same(command, tiny_folder, tmp_path):
    saved = []
    for name, extra in (("whole", []), ("pieces", ["--memory", SMALL])):
        folder = tmp_path / name
        quantize = ["quantize", "--model", tiny_folder, "--method", "gptq", "--bits", "3"]
        quantize += ["--group-size", "32", "--samples", "4", "--length", "32", "--data", "mini"]
        done = command(*quantize, "--dtype", "bfloat16", "-o", folder, *extra)
        assert done.code == 0, done.err
        judge = ["eval", folder, "--tasks", "wikitext,divergence", "--unquantized", tiny_folder]
        judge += ["--dtype", "float32", "--data", "mini"]
        for task in ("wikitext", "divergence"):
            judge += ["--set", f"{task}.limit=2", "--set", f"{task}.length=64"]
        scores = command(*judge, *extra)
        assert scores.code == 0, scores.err
        tensors = Shards(folder)
        values = {key: tensors.tensor(key).float().tolist() for key in sorted(tensors.entries)}
        saved.append((values, scores.out))
    assert saved[0] == saved[1]
