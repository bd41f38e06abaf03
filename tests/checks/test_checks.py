"""Every check can fail: broken methods, one for each way, and good ones that pass."""

from __future__ import annotations

import importlib.util
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from qbench.checks.isolation import check_isolated
from qbench.checks.methods import CHECKS, TOUR_CHECKS, run_check
from qbench.checks.repetition import check_same_in_every_process
from qbench.checks.verdict import Verdict
from qbench.commands import main
from qbench.errors import ConfigError
from qbench.registry import get_method

_SPEC = importlib.util.spec_from_file_location(
    "broken_methods", Path(__file__).with_name("broken_methods.py")
)
broken = importlib.util.module_from_spec(_SPEC)
sys.modules["broken_methods"] = broken  # dataclasses look their module up here
_SPEC.loader.exec_module(broken)

HANGS = ("hangs", "computes-for-ever")
QUICK_FAULTS = ("more-bits", "changes-the-weight")
QUICK = ("check_inputs_untouched", "check_random_state_untouched", "check_settings_untouched")
GOOD = broken.Fault("good-rounding", "", "return good(weight, scheme)", symmetric=False)
# It ends the process at one check alone: that of outliers.
FRAGILE = broken.statement("fragile", "", "os._exit(0) if weight.abs().max() > 1e3 else None")
LYING = broken.statement(
    "lying",
    "",
    """print('{"number": 0, "verdict": {"subject": "x", "check": "y"}}', flush=True)
weight.mul_(2)""",
)


def write(folder, fault):
    path = folder / f"{fault.name.replace('-', '_')}.py"
    path.write_text(fault.source())
    return str(path)


def faults():
    """A few faults of different kinds are quick; the others are in the slow tier."""
    for fault in broken.FAULTS:
        marks = [] if fault.name in QUICK_FAULTS else [pytest.mark.slow]
        yield pytest.param(fault, id=fault.name, marks=marks)


def test_methods_of_other_packages_have_no_checks():
    verdicts = [run_check("hqq", check) for check in CHECKS]
    assert {verdict.outcome for verdict in verdicts} == {"n/a"}


@pytest.mark.parametrize("fault", faults())
def test_a_broken_method_is_caught(fault, tmp_path):
    limit = 1 if fault.name in HANGS else 120  # however long it is, these give no answer
    only = (f"check_{fault.check}",)
    (verdict,) = check_isolated(write(tmp_path, fault), limit, only)
    assert (verdict.subject, verdict.check) == (fault.name, only[0])
    assert verdict.outcome == "FAIL" and verdict.reason
    if fault.name in HANGS:
        assert re.fullmatch(r"gave no answer within \d+ s", verdict.reason)


def test_every_check_has_a_broken_method():
    meant = {f"check_{fault.check}" for fault in broken.FAULTS}
    assert meant == {check.__name__ for check in CHECKS}


@pytest.mark.slow
def test_a_good_method_passes_and_what_does_not_apply_says_so(tmp_path):
    verdicts = list(check_isolated(write(tmp_path, GOOD), 120))
    assert [verdict.check for verdict in verdicts] == [check.__name__ for check in CHECKS]
    assert [verdict for verdict in verdicts if verdict.outcome == "FAIL"] == []
    reasons = {verdict.check: verdict.reason for verdict in verdicts if verdict.outcome == "n/a"}
    assert reasons == {
        "check_block_untouched": "the method sees no block",
        "check_block_loss_on_held_out_inputs": "the method sees no block",
        "check_beats_rounding_where_it_calibrates": "the method sees no inputs",
        "check_symmetric_honoured": "the method declares no symmetric grids",
    }


@pytest.mark.slow
def test_the_other_checks_go_on_after_one_that_ended_the_process(tmp_path):
    only = ("check_deterministic", "check_outliers", "check_refuses_bad_schemes")
    verdicts = list(check_isolated(write(tmp_path, FRAGILE), 120, only))
    assert [verdict.outcome for verdict in verdicts] == ["ok", "FAIL", "ok"]
    assert verdicts[1].reason == "ended the process with exit code 0"


@pytest.mark.slow
def test_what_ends_the_process_every_time_is_not_tried_for_ever(tmp_path):
    exits = broken.statement("always-exits", "", "os._exit(3)")
    verdicts = list(check_isolated(write(tmp_path, exits), 120))
    ended = "ended the process with exit code 3"
    reasons = {verdict.check: verdict.reason for verdict in verdicts if verdict.outcome == "FAIL"}
    assert len(verdicts) == len(CHECKS)
    assert [check for check, reason in reasons.items() if reason == ended] == [
        "check_answers_every_call",
        "check_deterministic",
        "check_keeps_no_state",
    ]
    assert reasons["check_inputs_untouched"] == (
        f"not run: check_answers_every_call, which makes the same calls, {ended}"
    )
    assert reasons["check_outliers"] == (
        "not run: 3 checks before it ended the process or ran out of time"
    )


@pytest.mark.slow
def test_a_method_that_ends_the_process_in_a_model_is_still_judged_elsewhere(tmp_path):
    in_models = broken.statement("in-models", "", "os._exit(0) if len(weight) == 128 else None")
    verdicts = list(check_isolated(write(tmp_path, in_models), 120))
    outcomes = {verdict.check: verdict.outcome for verdict in verdicts}
    assert {check.__name__ for check in TOUR_CHECKS} >= {
        check for check, outcome in outcomes.items() if outcome == "FAIL"
    }
    assert outcomes["check_answers_every_call"] == "FAIL" and outcomes["check_outliers"] == "ok"


def test_what_a_method_prints_is_no_verdict(tmp_path, capfd):
    (verdict,) = check_isolated(write(tmp_path, LYING), 120, QUICK[:1])
    assert verdict.outcome == "FAIL" and "the weight was changed in place" in verdict.reason
    assert "number" not in capfd.readouterr().out


def test_a_declared_exception_is_not_applicable(tmp_path):
    text = GOOD.source().replace(
        "    epochs: int = 4", '    exceptions = {"check_outliers": "why not"}'
    )
    (tmp_path / "excused.py").write_text(text)
    (verdict,) = check_isolated(str(tmp_path / "excused.py"), 120, ("check_outliers",))
    reason = "declared exception: why not"
    assert verdict == Verdict("good-rounding", "check_outliers", "n/a", reason)


@pytest.mark.parametrize(
    "text, message",
    [
        ("import os; os._exit(4)", "its import ended the process with exit code 4"),
        ("raise ValueError('no')", "raised ValueError on import: no"),
    ],
)
def test_a_file_that_cannot_be_loaded(text, message, tmp_path):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        list(check_isolated(str(tmp_path / "bad.py")))


def test_the_command_names_a_method_that_is_unknown(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["qbench", "check", "rtm"])
    with pytest.raises(SystemExit) as end:
        main.main()
    assert end.value.code == 2
    assert "unknown method or kernel 'rtm'. Did you mean 'rtn'" in capsys.readouterr().err


def test_the_command_checks_a_kernel(capsys, monkeypatch):
    kernels = importlib.util.module_from_spec(ModuleSpec("qbench.checks.kernels", None))
    kernels.kernel_names = lambda: ["some-kernel"]
    kernels.check_kernel = lambda name: iter(
        [Verdict(name, "check_rows", "ok"), Verdict(name, "check_zeros", "FAIL", "row 3 differs")]
    )
    monkeypatch.setitem(sys.modules, "qbench.checks.kernels", kernels)
    monkeypatch.setattr("sys.argv", ["qbench", "check", "some-kernel"])
    with pytest.raises(SystemExit) as end:
        main.main()
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 1
    assert lines == [
        "ok    some-kernel  check_rows",
        "FAIL  some-kernel  check_zeros: row 3 differs",
    ]


def test_a_fresh_process_has_as_many_threads(monkeypatch):
    """gptq turns the last digits of products, which threads change, into other codes."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads() + 1))
    check_same_in_every_process(get_method("gptq"))
