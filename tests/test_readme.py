"""The command lines of the README, run as they are written, with a tiny model behind every name."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from places import ROOT
from qbench.experiment import grid
from qbench.experiment.grid import Grid
from qbench.experiment.grid_checks import check_request
from qbench.models import source
from qbench.tasks import hub
from tiny_runs import empty_picture

README = (ROOT / "README.md").read_text()
# What takes long with any model, or is not about models: their own tests run them.
ELSEWHERE = ("check", "compare", "doctor", "latency")
FEW = {
    "wikitext": {"limit": 2, "length": 64},
    "divergence": {"limit": 2, "length": 64},
    "arc_easy": {"limit": 2},
    "arc_challenge": {"limit": 2},
    "mmlu": {"limit": 1, "num_fewshot": 0},
    "gsm8k": {"limit": 1, "generate": 0},
}
PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from qbench.methods.rtn import RTN

@dataclass(frozen=True)
class Mine(RTN):
    name: ClassVar[str] = "mine"
"""


def blocks(language=""):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.S | re.M)
    return [text for kind, text in found if kind == language]


def lines():
    """The command lines of the README's blocks, without comments."""
    found = [line for block in blocks() for line in block.splitlines()]
    return [re.sub(r"\s+#.*", "", line) for line in found]


def commands():
    """Every `qbench` command, as words; lines that go on with && are several."""
    parts = [part.strip() for line in lines() for part in line.split("&&")]
    return [shlex.split(part)[1:] for part in parts if part.startswith(".venv/bin/qbench")]


def asked(line):
    """What `make` says to a line; it is asked and runs nothing."""
    # Within `make test` the outer make's flags would be taken over, and its folders printed.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    alone.pop("MFLAGS", None)
    return subprocess.run(
        [*shlex.split(line), "-n", "-o", ".venv/.ready", "RUN="],
        cwd=ROOT, capture_output=True, text=True, env=alone,
    )  # fmt: skip


def made(line):
    """The words that `make` would give to `qbench run`."""
    done = asked(line)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.replace("\\\n", " ")
    return shlex.split(shown[shown.index("qbench run") :])[1:]


@pytest.fixture
def small(tiny_folder, tmp_path, monkeypatch):
    """A tiny model behind the names, few items, no hub, and a folder to be in."""
    monkeypatch.setattr(source, "BUILT_IN", {"smollm2-135m": lambda: tiny_folder})
    monkeypatch.setattr("qbench.experiment.data_choice.BUILT_IN", {})
    monkeypatch.setattr(hub, "refusal", lambda names: "there is no hub here")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty_picture)
    few = {"tasks": FEW, "calibration": {"samples": 4, "length": 32}, "group_size": 32}
    presets = {name: {**preset, **few} for name, preset in grid.PRESETS.items()}
    monkeypatch.setattr(grid, "PRESETS", presets)
    monkeypatch.delenv("QBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("my_variant.py").write_text(PLUGIN)


def test_there_are_lines_of_every_kind():
    verbs = {words[0] for words in commands()}
    assert verbs >= {"run", "quantize", "eval", "inspect", "verify", "export", "report"}
    assert sum(line.startswith("make bench") for line in lines()) == 3


@pytest.mark.usefixtures("small", "no_hub")
def test_make_bench_lines_are_planned_as_written(command):
    for line in lines():
        if line.startswith("make bench"):
            words = made(line)
            assert ("DRY=1" in line) == ("--dry-run" in words)
            code, text, error = command(*words, *[] if "DRY=1" in line else ["--dry-run"])
            assert code == 0, error
            first, *_, last = text.splitlines()
            assert "warning: stand-ins are used" in first and "preset" in first
            assert "cells, about" in last, "what it costs is said"
            if "llama3-8b" in line:
                assert "downloads 16.1 GB" in last, "and what would come from the hub"
            else:
                assert "downloads" not in last


def test_make_gives_its_variables_as_they_are():
    words = made("make bench MODEL=./models/llama/ 'BITS=2, 3' 'DATA=my data' DRY=0")
    assert "--dry-run" not in words
    flags = dict(zip(words[1::2], words[2::2], strict=True))
    assert flags == {
        "--model": "./models/llama/",
        "--out": "runs/llama",
        "--bits": "2, 3",
        "--data": "my data",
    }
    assert "it's here" in made('make bench "OUT=it\'s here"')
    for model, name in (
        (".", ROOT.name),
        ("..", ROOT.parent.name),
        ("tests/../", ROOT.name),
        (".//", ROOT.name),
    ):
        assert f"runs/{name}" in made(f"make bench MODEL={model}"), "neither this folder nor runs"
    assert "runs/model" in made("make bench MODEL=/"), "the root has no name"
    assert "runs/smollm2-135m" in made("make bench QBENCH_DATA=data CC=clang"), (
        "programs read these"
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("make bench METHOD=gptq", "bench knows no METHOD; it takes MODEL BITS METHODS TASKS"),
        ("make bench GROUP=32", "bench knows no GROUP; it takes MODEL BITS"),
        ("make regress METHOD=gptq DRY=1", "regress knows no DRY; it takes METHOD BASE"),
        ("make gate BITS=3", "gate knows no BITS; it takes REVISION MODEL"),
        ("make latency BITS=3", "latency knows no BITS; it takes SHAPES"),
    ],
)
def test_make_refuses_a_variable_that_a_target_does_not_take(line, said):
    done = asked(line)
    assert done.returncode == 2 and said in done.stderr and not done.stdout


@pytest.mark.long
@pytest.mark.usefixtures("small")
def test_qbench_lines_run_as_written(command):
    for words in commands():
        if words[0] in ELSEWHERE or "gguf" in words:  # the tiny tokenizer cannot be a GGUF's
            continue
        # trained methods and groups of the README are those of larger models
        more = ["--set", "uniquanf.epochs=1"] if "uniquanf.epochs=8" in words else []
        code, text, error = command(*words, *more)
        assert code == 0, f"{' '.join(words)}\n{text}{error}"
    assert Path("runs/first/leaderboard.md").is_file()
    shutil.rmtree("runs")


def test_the_grid_file_is_one():
    (text,) = blocks("yaml")
    found = Grid.model_validate(yaml.safe_load(text))
    check_request(found)
    assert [method for method, _ in found.variants] == ["none", "gptq", "gptq", "uniquanf"]
