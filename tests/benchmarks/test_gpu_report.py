"""`make gpu-report`: sections end in time and alone, and what they wrote until then is kept."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import replace
from itertools import product

import pytest
import torch

from places import ROOT
from qbench.checkpoint.packed_linear import QuantLinear
from qbench.contracts import Scheme
from qbench.errors import ConfigError
from qbench.latency.end_to_end import Speed
from qbench.latency.timing import Shape
from qbench.registry import get_method

sys.path.insert(0, str(ROOT / "benchmarks"))
from gpu_report import correctness, dispatch, end_to_end, latency, peers, sections, training
from gpu_report.processes import Outcome, each
from gpu_report.random_model import random_twins

sys.path.remove(str(ROOT / "benchmarks"))

SECTION = """
import json, os, subprocess, sys, time
name, path, seconds = sys.argv[2], sys.argv[4], float(sys.argv[6])
with open(path, "w") as file:
    json.dump({"section": name, "seconds": seconds}, file)
if name == "latency":
    raise SystemExit(3)
if name == "tune":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with open(path, "w") as file:
        json.dump({"child": child.pid}, file)
    time.sleep(60)
"""


def test_a_section_that_fails_or_hangs_leaves_the_others(tmp_path, capsys):
    script, path = tmp_path / "section.py", tmp_path / "results" / "gpu.json"
    script.write_text(SECTION)
    limits = sections.limits_of("pipeline,tune,latency,correctness", "tune=1.5")
    assert list(limits) == ["correctness", "tune", "latency", "pipeline"]
    failed = sections.report(limits, [sys.executable, str(script)], path, {"gpu": "none"})
    assert failed == ["tune", "latency"]
    stored = json.loads(path.read_text())
    assert stored["gpu"] == "none" and list(stored["sections"]) == list(limits)
    told = {name: section["status"] for name, section in stored["sections"].items()}
    assert told["correctness"] == told["pipeline"] == "ok"
    assert told["latency"] == "failed: exit code 3" and told["tune"] == "stopped after its 2 s"
    results = stored["sections"]["latency"]["results"]
    assert results == {"section": "latency", "seconds": limits["latency"]}
    assert "--- tune: stopped" in capsys.readouterr().out
    assert ended(stored["sections"]["tune"]["results"]["child"]), "what it started lives on"


def ended(process):
    """Whether this process is gone, or is nothing but its exit code; it is given ten seconds."""
    for _ in range(100):
        try:
            with open(f"/proc/{process}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


def test_a_section_that_writes_nothing_has_no_results(tmp_path):
    outcome = sections.run_section([sys.executable, "-c", ""], tmp_path / "none.json", 60)
    assert outcome["status"] == "ok" and outcome["results"] is None


@pytest.mark.parametrize(
    "names, changes, message",
    [
        ("latensy", "", "unknown section 'latensy'. Did you mean 'latency'"),
        ("latency", "tunes=3", "unknown section 'tunes'. Did you mean 'tune'"),
        ("latency", "tune=soon", "the limit 'tune=soon' is no number of seconds"),
        ("latency", "tune=-1", "the limit 'tune=-1' is no number of seconds"),
    ],
)
def test_unknown_sections_and_limits_are_refused(names, changes, message):
    with pytest.raises(ConfigError, match=message):
        sections.limits_of(names, changes)


def test_what_one_process_does_to_itself_is_its_own_outcome(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")  # where the processes find their code
    roots = {item: (result, reason) for item, result, reason in each(math.sqrt, [4, -1], 2, 60)}
    assert roots[4] == (2.0, None)
    assert roots[-1][0] is None and roots[-1][1].startswith("ValueError")
    [(item, result, reason)] = each(os._exit, [3], 1, 60)
    assert (item, result, reason) == (3, None, "its process ended with 3")
    slow = list(each(time.sleep, [60, 61], 1, 0.5))
    assert [outcome.result for outcome in slow] == [None, None]
    assert "not finished in time" in slow[0].reason and "not reached in time" in slow[1].reason


def test_the_checks_cover_every_pair_that_a_kernel_is_compiled_for():
    checks = correctness.checks(("cuda", "triton"))
    pairs = {(check.bits, check.group_size) for check in checks}
    assert pairs >= set(product(range(1, 9), correctness.INPUTS))
    for field in ("bits", "group_size"):
        triples = {(getattr(check, field), check.coding, check.dtype) for check in checks}
        values = {getattr(check, field) for check in checks}
        assert triples == set(product(values, ("binary", "uniform"), correctness.DTYPES))
    for rows in correctness.ALL_ROWS:
        assert {check.bits for check in checks if rows in check.rows} == set(range(1, 9))
    assert {check.parameters for check in checks} >= {
        "no shift",
        "float32",
        "integers",
        "real zero",
    }


@pytest.mark.parametrize("check", correctness.checks(("cuda",))[1::7], ids=str)
def test_the_weights_are_what_the_checks_say(check):
    weight = correctness.weight_of(check)
    assert weight.format == check.coding and weight.bits == check.bits
    assert weight.shape == (333, correctness.INPUTS[check.group_size])
    assert weight.group_size == (check.group_size or weight.shape[1])


def test_parameters_are_stored_in_every_way():
    ways = {check.parameters: check for check in correctness.checks(("cuda",))}
    stored = {way: correctness.weight_of(check) for way, check in ways.items()}
    assert stored["no shift"].shift is None and stored["middle zero"].zero_point is None
    assert stored["float32"].alpha.dtype.itemsize == 4
    assert stored["real zero"].zero_point.is_floating_point()


def test_a_summary_counts_what_is_right_and_refused():
    right = {"kernel": "cuda", "right": True, "error": 2e-3, "rounding": 1e-3}
    wrong = right | {"right": False, "error": 1.0}
    other = {"kernel": "triton", "refused": "no"}
    line = correctness.summary([right, wrong, other], "cuda")
    assert line.startswith("cuda: 1 of 2 products are right, 0 refused; largest error 0.002")
    assert line.endswith("at most 2.00 times the rounding of the result")
    assert "0 of 0 products are right, 1 refused" in correctness.summary([other], "triton")


def test_what_matters_most_is_timed_first():
    todo = latency.shapes(quick=False)
    assert len(set(todo)) == len(todo) == len(latency.SHAPES) * len(latency.ROWS)
    assert [shape.rows for shape in todo[:4]] == [1, 1, 1, 1]
    assert set(latency.shapes(quick=True)) < set(todo)


def test_what_failed_in_a_process_of_its_own_is_not_timed(monkeypatch):
    few, many, large = Shape(64, 256, 1), Shape(64, 256, 64), Shape(128, 256, 1)
    todo = [few, many, large]
    tasks = latency.first_runs(todo)
    assert {(few, "bitsandbytes nf4"), (large, "3 bits"), (many, "torch int4")} < set(tasks)
    assert not {(few, "humming int3"), (few, "gemlite int4"), (large, "torch int4")} & set(tasks)
    outcomes = {
        (few, "torch int4"): (None, "RuntimeError: no"),
        (large, "3 bits"): (None, "its process ended with -11"),
        (many, "2 bits"): ({"triton": "2 bits: the relative error is 1"}, None),
        (many, "3 bits"): (None, "not reached in time"),
    }

    def each_of(function, items, workers, seconds):
        return [Outcome(item, *outcomes.get(item, ({}, None))) for item in items]

    monkeypatch.setattr(latency, "each", each_of)
    failed = latency.for_all_matrices(latency.failures(todo, tasks, 2, 10), latency.PLAIN)
    assert failed[few] == {"torch int4": "RuntimeError: no"}
    assert failed[many] == {"triton": "2 bits: the relative error is 1"}
    assert failed[large] == {
        "cuda": "its process ended with -11",
        "torch int4": "RuntimeError: no",
    }


def test_programs_that_compile_themselves_are_timed_apart(monkeypatch):
    ran, asked = [], []

    def failures(todo, tasks, workers, seconds):
        ran.extend(tasks)
        return {shape: {} for shape in todo}

    def timed(todo, failed, without, end, keep):
        asked.append(failed)
        return True

    monkeypatch.setattr(peers, "failures", failures)
    monkeypatch.setattr(peers, "timed", timed)
    assert peers.run(print, quick=False, seconds=1)
    first, *others = latency.SHAPES
    for matrix, rows in product(latency.SHAPES, peers.ROWS):
        names = {name for shape, name in ran if shape == Shape(*matrix, rows)}
        assert {"humming int2", "humming int3", "humming int4"} <= names
        assert ("gemlite int4" in names) == (matrix == first) and "torch int4" not in names
        assert ("gemlite int4" in asked[0][Shape(*matrix, rows)]) == (matrix in others)


def test_the_time_of_a_step_is_from_its_start_to_the_next():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "max_position_embeddings": training.LENGTH}
    for name in training.METHODS:
        method = get_method(name, **training.settings_of(name, 1) | {"epochs": 2})
        block, inputs = training.block_of(1, "cpu", **sizes)
        clock = training.Clock(profiled=100)
        few = replace(inputs, quantized=inputs.quantized[:3], full=inputs.full[:3], progress=clock)
        targets = [torch.zeros_like(hidden) for hidden in few.quantized]
        with torch.no_grad():
            method.quantize_block(block, few, targets, Scheme(3, 32))
        assert len(clock.starts) == 2 * 2, name  # epochs, and the batches that train
        assert sorted(clock.starts) == clock.starts


@pytest.mark.parametrize("name", dispatch.WEIGHTS)
def test_the_promises_of_products_are_kept_on_a_cpu(name):
    entries = dispatch.kept(name, "cpu")
    assert len(entries) == 13 and all(entry["right"] for entry in entries), entries


def test_a_broken_promise_is_told(monkeypatch):
    broken = {"twice": lambda case: (2 * case.x, case.x.double()), "none": lambda case: 1 / 0}
    monkeypatch.setattr(dispatch, "promises", lambda device: broken)
    twice, none = dispatch.kept("uniform, 4 bits", "cpu")
    assert twice["error"] == pytest.approx(1) and not twice["right"]
    assert none["reason"] == "ZeroDivisionError: division by zero" and not none["right"]


def test_random_twins_are_the_same_model():
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97}
    packed, dense = random_twins(sizes, 3, 32, "cpu", torch.float32)
    ids = torch.arange(5)[None]
    difference = packed(ids).logits - dense(ids).logits
    assert difference.norm() < 1e-5 * dense(ids).logits.norm()
    names = [name for name, layer in packed.named_modules() if isinstance(layer, QuantLinear)]
    assert len(names) == 2 * 7 and "lm_head" not in names
    weight = dense.get_submodule(names[0]).weight
    assert 0.5 < weight.std() * weight.shape[1] ** 0.5 < 2  # so that activations keep their size


def test_a_way_to_compute_that_fails_leaves_the_others(monkeypatch):
    asked = []

    def time_models(makers, prompt, tokens, repeats, progress, fusion):
        asked.append(fusion)
        if fusion == "token":
            raise RuntimeError("an illegal instruction")
        rates = {"none": 3.0, "modules": 5.0}[fusion]
        return [Speed(name, (9, 9, 9), (rates, rates, rates), 0.1, 7, {}) for name in makers]

    def kernels_of_a_step(model, way):
        return [{"way": way.fusion}]

    monkeypatch.setattr(end_to_end, "random_twins", lambda *arguments: (1, 2))
    monkeypatch.setattr(end_to_end, "time_models", time_models)
    monkeypatch.setattr(end_to_end, "kernels_of_a_step", kernels_of_a_step)
    stored = []
    right = end_to_end.run(lambda facts: stored.append(dict(facts)), quick=True, seconds=0)
    assert not right and asked == ["none", "modules", "token"]
    for way in end_to_end.WAYS[:2]:
        assert [speed["name"] for speed in stored[-1][way.title]] == [
            "packed 3 bits",
            "dense bfloat16",
        ]
    assert stored[-1][end_to_end.WAYS[2].title] == "RuntimeError: an illegal instruction"
    assert stored[-1]["kernels of a step, packed 3 bits"] == [{"way": "modules"}], "the fastest"
