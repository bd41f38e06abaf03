"""`qbench config`: the merged grid is a file that makes the same grid, and the schema knows it."""

from __future__ import annotations

import json

import pytest
import yaml

from qbench import registry
from qbench.commands.config import schema_of_grid
from qbench.errors import ConfigError
from qbench.experiment.grid import Grid
from qbench.experiment.grid_file import merged, read_grid

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from qbench.methods.rtn import RTN

@dataclass(frozen=True)
class Mine(RTN):
    name: ClassVar[str] = "mine"
"""


@pytest.mark.parametrize(
    "text, flags",
    [
        ("", []),
        ("methods: none", []),
        ("bits: 2,3\nset: {gptq: {damp: [0.01, 0.1]}}", ["--set", "gptq.norm=1", "--seed", "3"]),
        ("preset: paper\nmethods: rtn,gptq\ngroup_size: channel", ["--only", "gptq,3b"]),
        ("sweep: uniquanf-ablation\nmax_cells: 5", ["--workers", "2", "--skip", "2b"]),
    ],
)
def test_what_is_shown_is_a_file_that_makes_the_same_grid(command, tmp_path, text, flags):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    done = command("config", "show", "--config", path, *flags)
    assert done.code == 0, done.err
    again = tmp_path / "again.yaml"
    again.write_text(done.out)
    assert command("config", "show", "--config", again).code == 0
    grid = read_grid(again, {})
    assert grid.preset in ("quick", "paper")
    first = read_grid(path, {})
    assert grid.variants == first.model_copy(update={"set": grid.set}).variants
    assert (grid.group, grid.task_names, grid.sweep) == (first.group, first.task_names, first.sweep)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "nope"], "--data='nope' is no folder; give auto, mini, hub or a folder"),
        (["--device", "gpu"], "unknown device 'gpu'"),
        (["--set", "calibration.samples=0"], "calibration.samples=0 is too small; give 1 or more"),
        (["--set", "calibration.length=1"], "calibration.length=1 is too small; give 2 or more"),
        (
            ["--set", "wikitext.limit=-1"],
            "wikitext.limit=-1 is too small; give 1 or more, or 'all'",
        ),
        (["--set", "wikitext.length=1"], "wikitext.length=1 is too small; give 2 or more\n"),
        (["--seed", "9223372036854775807", "--replicates", "2"], "the last seed=92233720368547758"),
    ],
)
def test_what_a_run_refuses_without_data_is_refused(command, flags, message):
    for words in (("config", "show"), ("run", "--dry-run")):
        code, out, err = command(*words, *flags)
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_each_line_says_where_it_is_from(command, tmp_path):
    path = tmp_path / "grid.yaml"
    path.write_text("bits: 2,3\nset: {gptq: {damp: 0.1}}\nseed: 4")
    out = command("config", "show", "--config", path, "--bits", "4", "--set", "gptq.norm=1").out
    lines = {line.partition(":")[0]: line for line in out.splitlines()}
    assert "[4]" in lines["bits"] and lines["bits"].endswith("# flag")
    assert lines["seed"].startswith("seed: 4 ") and lines["seed"].endswith(str(path))
    assert "{gptq: {damp: [0.1], norm: ['1']}}" in lines["set"]
    assert lines["set"].endswith(f"# flags, over {path}")
    assert lines["methods"].endswith("# preset quick") and lines["dtype"].endswith("# default")
    assert yaml.safe_load(out)["bits"] == [4]


def test_a_method_of_a_plug_in_and_a_text_are_shown(command, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_plugins", dict(registry._plugins))  # it is forgotten again
    path = tmp_path / "my.py"
    path.write_text(PLUGIN)
    flags = ["--plugin", path, "--text", "code"]
    done = command("config", "show", *flags, "--methods", "rtn,mine")
    assert done.code == 0, done.err
    shown = yaml.safe_load(done.out)
    assert shown["methods"] == ["rtn", "mine"] and shown["text"] == ["code"]
    again = tmp_path / "again.yaml"
    again.write_text(done.out)
    assert "divergence_code" in read_grid(again, {}).task_names
    done = command("config", "show", *flags, "--methods", "mien")
    assert done.code == 2 and "Did you mean 'mine'" in done.err


def test_a_wrong_grid_is_not_shown(command):
    done = command("config", "show", "--methods", "gtpq")
    assert done.code == 2 and "Did you mean 'gptq'" in done.err and not done.out


def test_the_schema_has_every_key_in_every_form(command):
    schema = json.loads(command("config", "schema").out)
    assert set(schema["properties"]) == {*Grid.model_fields, "jobs"}
    assert schema["additionalProperties"] is False
    validator = pytest.importorskip("jsonschema").Draft202012Validator(schema)
    good = [
        {"bits": "2,3", "methods": "rtn", "set": {"gptq": {"damp": [0.1, 0.2]}}},
        {"bits": [2, 3], "set": {"gptq.damp": 0.1}, "workers": "auto", "group_size": "channel"},
        {"bits": 3, "set": ["gptq.damp=0.1"], "only": "gptq*", "plugin": "a.py"},
        {"bits": 2.5, "set": "gptq.damp=0.1", "layers": "*.k_proj=4", "memory": "8GB", "jobs": 2},
        {"layers": {"*.k_proj": "4g32"}, "memory": 8, "jobs": "auto", "text": "wiki,code"},
    ]
    for grid in good:
        Grid.model_validate(merged(grid, {}))
    assert not [error for grid in good for error in validator.iter_errors(grid)]


@pytest.fixture(scope="module")
def validator():
    return pytest.importorskip("jsonschema").Draft202012Validator(schema_of_grid())


@pytest.mark.parametrize(
    "text",
    [
        "bits: ['3', '4']",
        "bits: ' 2.8 , 3'",
        "group_size: '32'",
        "seed: '3'\nreplicates: '2'\ntime_limit: '10'",
        "workers: '2'\nmax_cells: '2'\nhead_bits: '8'",
        "symmetric: 'yes'\nlatency: 'no'\ntrust_remote_code: '1'\nrequantize: 0",
        "memory: 1.5 GB",
        "memory: 100",
        "bits:\nset:\nlayers:\nlatency:\nworkers:",
        "layers: {'*.q_proj': 4, '*.k_proj': 8g32, '*.v_proj': skip}",
        "layers: ['*.q_proj=4gchannel']",
        "set: {gptq: {damp: [0.1, 1], act_order: no}, calibration.samples: '4,8', rtn: {}}",
        "set: [gptq.damp=0.1, wikitext.limit=3]",
        "set: {uniquanf: {lr: [null]}}",
    ],
)
def test_what_the_schema_allows_is_read(validator, tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    read_grid(path, {})
    assert not [error.message for error in validator.iter_errors(yaml.safe_load(text))]


@pytest.mark.parametrize(
    "text",
    [
        "bitz:",
        "bits: a",
        "bits: []",
        "methods: ['']",
        "only: ''",
        "out: ''",
        "seed: x",
        "symmetric: 2",
        "workers: 0",
        "workers: 2000",
        "memory: -1",
        "memory: 1.5",
        "memory: '1.5'",
        "memory: lots",
        "set: {gptq: 3}",
        "set: {gptq: [damp]}",
        "set: {gptq: }",
        "set: {gptq: {damp: }}",
        "set: {gptq.damp: {a: 1}}",
        "set: {gptq: {damp: {a: 1}}}",
        "set: {gptq: {damp: []}}",
        "set: [gptq]",
        "layers: ['*.q_proj']",
        "layers: [{layers: '*.q_proj', bits: 3}]",
        "layers: {'*.q_proj': 4g0}",
        "layers: {'*.q_proj': 0}",
        "layers: []",
    ],
)
def test_what_the_schema_refuses_is_not_read(validator, tmp_path, text):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_grid(path, {})
    assert list(validator.iter_errors(yaml.safe_load(text)))
