"""Whatever a method does to its process is a recorded failure, and the other cells are right."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from qbench.experiment.estimate import Estimate
from qbench.experiment.runner import time_limit
from qbench.experiment.store import read_records
from tiny_runs import empty_picture, run_args

_SPEC = importlib.util.spec_from_file_location(
    "broken_methods", Path(__file__).parents[1] / "checks" / "broken_methods.py"
)
broken = importlib.util.module_from_spec(_SPEC)
sys.modules.setdefault("broken_methods", broken)  # dataclasses look their module up here
_SPEC.loader.exec_module(broken)

# Faults that one sees while a method quantizes a real model; the others are about quality, which a
# run measures, or about shapes that a tiny Llama does not have.
SEEN = {
    "answers_every_call", "block_untouched", "deterministic", "inputs_untouched", "is_a_value",
    "keeps_no_state", "no_gradients_left",
    "no_more_bits_than_asked", "nothing_patched", "process_untouched", "random_state_untouched",
    "results_own_their_memory", "settings_untouched", "shape_and_format",
}  # fmt: skip
UNSEEN = {
    "fails-on-odd-rows", "infinite-per-row",
    "loses-the-odd-row", "nan-on-tall-weights", "no-biases", "no-conv1d", "no-experts",
}  # fmt: skip
ENDLESS = {"hangs", "computes-for-ever", "takes-all-memory"}
HARSH = """
from dataclasses import dataclass
from typing import ClassVar
import ctypes, os, sys, time
import torch
from qbench.methods.rtn import RTN

class Panic(BaseException):
    pass

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("mute")

@dataclass(frozen=True)
class Harsh(RTN):
    name: ClassVar[str] = "harsh"
    how: str = "attribute"

    def quantize_weight(self, weight, scheme):
        if self.how == "attribute": weight.nothing
        if self.how == "assertion": assert weight is None
        if self.how == "memory": raise MemoryError
        if self.how == "import": import no_such_package
        if self.how == "sys-exit": sys.exit(0)
        if self.how == "os-exit": os._exit(0)
        if self.how == "panic": raise Panic("panicked at lib.rs")
        if self.how == "mute": raise Mute
        if self.how == "surrogate": raise ValueError("half \\ud800 a character")
        if self.how == "segfault": ctypes.string_at(0)
        if self.how == "abort":
            print("thread panicked at 'no'", file=sys.stderr, flush=True)
            os.abort()
        if self.how == "patch": torch.nn.functional.linear = lambda *args: 1 / 0
        if self.how == "full-disk":  # as if there were room for 20 kB a file
            import resource
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        return super().quantize_weight(weight, scheme)
"""
SEEDED = """
from dataclasses import dataclass
from typing import ClassVar
from qbench.methods.rtn_h import RTNH

@dataclass(frozen=True)
class Seeded(RTNH):
    name: ClassVar[str] = "seeded"
    seed: int = 0

    def quantize_linear(self, weight, stats, scheme):
        raise ValueError(f"seed {self.seed}")
"""
REASONS = {
    "attribute": "AttributeError: 'Tensor' object has no attribute 'nothing'",
    "assertion": "AssertionError",
    "memory": "MemoryError",
    "import": "ModuleNotFoundError: No module named 'no_such_package'",
    "sys-exit": "SystemExit: 0",
    "os-exit": "the cell ended the process with exit code 0",
    "panic": "Panic: panicked at lib.rs",
    "mute": "Mute",
    "surrogate": "ValueError: half ? a character",
    "segfault": "the cell ended the process by SIGSEGV",
    "abort": "the cell ended the process by SIGABRT; it last said: thread panicked at 'no'",
    "patch": "the method breaks its contract: torch.nn.functional.linear replaced",
}


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty_picture)


def plugin(folder, name, text):
    path = folder / f"{name.replace('-', '_')}.py"
    path.write_text(text)
    return ["--plugin", path]


def reasons(out):
    """By label: the reason of every cell that failed, None where it is ok."""
    records, complaints = read_records(out)
    assert not complaints
    assert all((record.status == "ok") == (record.reason is None) for record in records)
    return {record.cell.label: record.reason for record in records}


@pytest.mark.slow
def test_every_way_to_fail_is_a_reason_and_the_grid_goes_on(tiny_folder, command, tmp_path):
    extra = [*plugin(tmp_path, "harsh", HARSH), "--set", f"harsh.how={','.join(REASONS)}"]
    out = tmp_path / "out"
    args = run_args(tiny_folder, out, "none,harsh,rtn", "4", extra, tasks=["wikitext"])
    code, text, error = command(*args)
    assert code == 1 and "Traceback" not in text + error
    found = reasons(out)
    assert found.pop("none") is found.pop("rtn 4b g32") is None
    for how in REASONS:
        label = "harsh 4b g32" if how == "attribute" else f"harsh 4b g32 how={how}"
        assert REASONS[how] in found[label], how
    logs = {path.stem: path.read_text() for path in (out / "logs").iterdir()}
    assert any("AttributeError" in log for log in logs.values()), "tracebacks are kept"


@pytest.mark.slow
def test_draws_move_the_seed_of_a_method(tiny_folder, command, tmp_path):
    extra = [*plugin(tmp_path, "seeded", SEEDED), "--replicates", "2", "--set", "seeded.seed=0,5"]
    out = tmp_path / "out"
    command(*run_args(tiny_folder, out, "seeded", "4", extra, tasks=["wikitext"]))
    told = {(row.cell.label[-6:], row.cell.seed): row.reason for row in read_records(out)[0]}
    assert {key: reason[-6:] for key, reason in told.items()} == {
        ("4b g32", 0): "seed 0",
        ("4b g32", 1): "seed 1",
        ("seed=5", 0): "seed 5",
        ("seed=5", 1): "seed 6",
    }


@pytest.mark.slow
def test_what_a_method_does_to_torch_is_nothing_to_the_next_cell(tiny_folder, command, tmp_path):
    beside = run_args(
        tiny_folder,
        tmp_path / "beside",
        "none,harsh,rtn",
        "4",
        [*plugin(tmp_path, "harsh", HARSH), "--set", "harsh.how=patch"],
        tasks=["wikitext"],
    )
    alone = run_args(tiny_folder, tmp_path / "alone", "none,rtn", "4", tasks=["wikitext"])
    assert command(*beside)[0] == 1
    assert command(*alone)[0] == 0
    scores = {}
    for out in ("beside", "alone"):
        for record in read_records(tmp_path / out)[0]:
            scores.setdefault(record.cell.label, []).append([s.value for s in record.scores])
    assert scores["none"][0] == scores["none"][1]
    assert scores["rtn 4b g32"][0] == scores["rtn 4b g32"][1]


@pytest.mark.long
def test_broken_methods_fail_in_a_run_and_the_good_cell_beside_them_is_right(
    tiny_folder, command, tmp_path
):
    faults = [f for f in broken.FAULTS if f.check in SEEN and f.name not in UNSEEN | ENDLESS]
    good = broken.Fault("good-rounding", "", "return good(weight, scheme)")
    extra = []
    for fault in [*faults, good]:
        extra += plugin(tmp_path, fault.name, fault.source())
    names = ",".join(["rtn", *(fault.name for fault in faults), "good-rounding"])
    out = tmp_path / "out"
    code, _, error = command(*run_args(tiny_folder, out, names, "4", extra, tasks=["wikitext"]))
    assert code == 1 and "Traceback" not in error
    found = reasons(out)
    assert len(faults) > 60 and len(found) == len(faults) + 2
    assert found.pop("rtn 4b g32") is found.pop("good-rounding 4b g32") is None
    assert [label for label, reason in found.items() if not reason] == []
    values = {
        record.cell.method: [score.value for score in record.scores]
        for record in read_records(out)[0]
    }
    assert values["good-rounding"] == values["rtn"]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ENDLESS))
def test_what_does_not_end_is_ended(tiny_folder, command, tmp_path, name):
    (fault,) = (fault for fault in broken.FAULTS if fault.name == name)
    extra = [*plugin(tmp_path, name, fault.source()), "--time-limit", "4"]
    args = run_args(tiny_folder, tmp_path / "out", name, "4", extra, tasks=["wikitext"])
    assert command(*args)[0] == 1
    (reason,) = reasons(tmp_path / "out").values()
    assert "was not done within 4 s" in reason or "memory" in reason


@pytest.mark.slow
def test_a_full_disk_ends_the_run_with_a_sentence_and_keeps_what_is_there(
    tiny_folder, command, tmp_path
):
    out = tmp_path / "out"
    extra = [*plugin(tmp_path, "harsh", HARSH), "--set", "harsh.how=full-disk"]
    code, _, error = command(*run_args(tiny_folder, out, "none,harsh", "4", extra, ["arc_easy"]))
    assert code == 2 and "cannot be written" in error and "File too large" in error
    assert error.count("qbench: ") == 1 and "Traceback" not in error
    assert [r.cell.method for r in read_records(out)[0]] == ["none"]


@pytest.mark.slow
def test_a_model_that_needs_a_package_names_it_and_the_next_model_runs(
    tiny_folder, command, tmp_path
):
    import json
    import shutil

    needy = tmp_path / "needy"
    shutil.copytree(tiny_folder, needy)
    config = json.loads((needy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (needy / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    args = ["run", "--model", f"{needy},{tiny_folder}", "--methods", "none", "--out", out]
    args += ["--tasks", "wikitext", "--set", "wikitext.limit=1", "--set", "wikitext.length=64"]
    assert command(*args, "--data", "mini", "--dtype", "float32")[0] == 1
    found = {Path(r.cell.model).name: r.reason for r in read_records(out)[0]}
    assert found["tiny"] is None
    assert "needs the package 'bitsandbytes', which is not installed" in found["needy"]


def test_a_time_limit_is_many_times_the_estimate_unless_it_is_given():
    estimate = Estimate(60.0, {"arc_easy": 40.0}, 0)
    assert time_limit(estimate, None) > 10 * estimate.seconds
    assert time_limit(estimate, 5.0) == 5.0
