"""The figures of models that are larger than memory say what the documents claim."""

from __future__ import annotations

import importlib.util
import json

import pytest

from places import ROOT

RESULTS = ROOT / "benchmarks" / "results"


@pytest.fixture(scope="module")
def projection():
    spec = importlib.util.spec_from_file_location(
        "projection", ROOT / "benchmarks" / "projection.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stored_tables_are_those_of_the_stored_measurements(projection):
    blocks = json.loads((RESULTS / "block_costs_cpu.json").read_text())
    table = projection.projected_block_by_block(blocks)
    assert blocks["projected"] == {"unit": "block by block", **table}
    pipeline = json.loads((RESULTS / "pipeline_NVIDIA_H200.json").read_text())
    assert pipeline["projected"].items() >= projection.projected(pipeline).items()


def test_costs_of_a_block_grow_with_its_weights(projection):
    costs = {"quantize_bytes": 10**9, "judge_bytes": 0, "quantize_seconds": 3600.0}
    measured = {
        "model": {"block_weights": projection.block_weights("8B")},
        "methods": {"rtn": costs},
    }
    small, large = projection.projected_block_by_block(measured).values()
    assert small["rtn h"] == 32 and small["rtn GB"] == pytest.approx(4.2 + 1, abs=0.1)
    assert large["rtn h"] == pytest.approx(80 * 3.92, rel=0.01)
    assert small["files GB"] == 16.1 and large["files GB"] == 141.1


def test_a_model_larger_than_the_limit_was_quantized_and_judged_under_it():
    stored = json.loads((RESULTS / "large_model_cpu.json").read_text())
    limit = stored["limit"]
    assert stored["model"]["bytes"] > limit
    whole, pieces = stored["whole"], stored["block by block"]
    assert {cell["status"] for cell in whole["cells"].values()} == {"failed"}
    assert {cell["status"] for cell in pieces["cells"].values()} == {"ok"}
    assert whole["limit"] == pieces["limit"] == limit >= pieces["peak_bytes"]["data"]
    assert pieces["peak_bytes"]["anonymous"] < limit
