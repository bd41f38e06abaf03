"""The planted faults and the false alarms, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fresh_python import run_python
from places import ROOT

SMALL = (
    "wikitext.limit=6",
    "divergence.limit=6",
    "gsm8k.limit=3",
    "wikitext.length=64",
    "divergence.length=64",
    "calibration.samples=4",
    "calibration.length=32",
)


@pytest.mark.long
def test_faults_are_found_and_identical_code_is_not(tiny_folder: Path, tmp_path: Path) -> None:
    words = ["--model", tiny_folder, "--out", tmp_path / "run"]
    for setting in SMALL:
        words += ["--set", setting]
    stored = tmp_path / "faults.json"
    names = "identical,lost-level"
    script = ROOT / "benchmarks" / "planted_faults.py"
    done = run_python("-P", script, *words, "--faults", names, "--json", stored)
    assert done.returncode == 0, done.stdout + done.stderr
    same, worse = json.loads(stored.read_text())["faults"]
    assert (same["fault"], same["outcome"], same["draws"]) == ("identical", "pass", 2)
    assert worse["fault"] == "lost-level" and worse["draws"] >= 2 and worse["worse by"]
    assert "stopped after 2 of 4 draws" in same["stopped"]
    script = ROOT / "benchmarks" / "false_alarms.py"
    counted = tmp_path / "alarms.json"
    words += ["--draws", "8", "--comparisons", "3", "--json", counted]
    done = run_python("-P", script, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    kinds = json.loads(counted.read_text())["comparisons"]
    assert [sum(kind["outcomes"].values()) for kind in kinds] == [3, 3, 3]
    assert kinds[1]["draws made"] == 4 and kinds[2]["draws made"] == 1
    assert "not comparable" not in kinds[1]["outcomes"]


def test_the_stored_figures_are_of_faults_that_there_are() -> None:
    text = (ROOT / "benchmarks" / "faulty_methods.py").read_text()
    stored = json.loads((ROOT / "benchmarks" / "results" / "planted_faults.json").read_text())
    assert all(f'= "{line["fault"]}"' in text for line in stored["faults"])
