"""A small version of `benchmarks/coverage.py`: every case is drawn, and the figures are sane."""

from __future__ import annotations

import importlib
import json

import pytest

from fresh_python import run_python
from places import ROOT


@pytest.mark.slow
def test_the_simulation_covers_what_it_says(tmp_path):
    path = tmp_path / "coverage.json"
    script = ROOT / "benchmarks" / "coverage.py"
    done = run_python("-P", script, "--runs", 60, "--json", path)
    assert done.returncode == 0, done.stderr
    cases = json.loads(path.read_text())["cases"]
    assert len(cases) > 40
    for case in cases:
        if case["draws"] == 1 and "spread between draws" in case["name"]:
            continue  # what this is about: one draw does not cover
        if case["cover"] is not None:
            assert case["cover"] >= 80, case
        if "gate" in case["name"] and case["alarms"] is not None:
            assert case["alarms"] <= 10, case


def test_three_points_at_ten_percent_discordance_take_at_most_700_items(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    coverage = importlib.import_module("coverage")
    assert coverage.items_for_share(0.10, 0.03, sided=1) == pytest.approx(687, abs=3)
    assert coverage.items_for_share(0.05, 0.03, sided=1) == pytest.approx(343, abs=2)


def test_the_stored_figures_are_those_that_the_document_gives():
    stored = json.loads((ROOT / "benchmarks" / "results" / "coverage.json").read_text())
    text = (ROOT / "docs" / "gate.md").read_text()
    articles = [c for c in stored["cases"] if c["name"].startswith("windows of articles")]
    four = [case for case in articles if case["draws"] == 4]
    covers = ", ".join(f"{case['cover']:.1f}" for case in four)
    alarms = ", ".join(f"{case['alarms']:.1f}" for case in four)
    assert stored["runs"] == 2000
    assert f"| {covers} % | {alarms} % |" in text
    early = [c for c in stored["cases"] if c["name"].startswith("stopping early, ") and c["cover"]]
    covers = ", ".join(f"{case['cover']:.1f}" for case in early)
    alarms = ", ".join(f"{case['alarms']:.1f}" for case in early)
    assert f"| {covers} % | {alarms} % |" in text
    assert all(case["cover"] >= 95 for case in early)
