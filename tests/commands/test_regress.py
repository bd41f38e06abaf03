"""What `qbench regress` and `qbench compare` leave in the files of their verdicts, and what not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from command_line import run_command
from qbench.checks import isolation
from qbench.checks.verdict import Verdict


@pytest.fixture
def stale(tmp_path: Path) -> tuple[Path, Path]:
    """The JSON file and the comment of an earlier verdict."""
    files = tmp_path / "verdict.json", tmp_path / "comment.md"
    for file in files:
        file.write_text("pass")
    return files


def test_a_broken_contract_is_a_verdict(stale, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Verdict("gptq", "check_outliers", "FAIL", "it gave <nothing>")
    verdicts = [Verdict("gptq", "check_is_a_value", "ok"), broken]
    monkeypatch.setattr(isolation, "check_isolated", lambda target, limit: iter(verdicts))
    done = run_command(
        "regress", "gptq", "--base", "rtn", "--json", stale[0], "--markdown", stale[1]
    )
    assert done.code == 1 and "FAIL  gptq  check_outliers: it gave <nothing>" in done.out
    body = json.loads(stale[0].read_text())
    assert (body["outcome"], body["base"], body["candidate"]) == (
        "breaks its contract",
        "rtn",
        "gptq",
    )
    assert [failure["check"] for failure in body["failures"]] == ["check_outliers"]
    comment = stale[1].read_text()
    assert comment.startswith("## breaks its contract: gptq against rtn\n")
    assert "- gptq check_outliers: it gave &lt;nothing&gt;\n" in comment


def test_what_is_refused_leaves_no_verdict_of_an_earlier_run(stale) -> None:
    done = run_command(
        "regress", "gtpq", "--base", "rtn", "--json", stale[0], "--markdown", stale[1]
    )
    assert done.code == 2 and not stale[0].exists() and not stale[1].exists()
    stale[1].write_text("pass")
    done = run_command("compare", "nothing", "nowhere", "--markdown", stale[1])
    assert done.code == 2 and not stale[1].exists()


def test_a_place_that_cannot_be_written_is_refused_before_the_run(tmp_path: Path) -> None:
    done = run_command("regress", "gptq", "--base", "rtn", "--json", tmp_path)
    assert done.code == 2 and "cannot be written" in done.err and "Traceback" not in done.err


PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from qbench.methods.rtn import RTN


@dataclass(frozen=True)
class Mine(RTN):
    name: ClassVar[str] = "mine_of_the_gate"
"""
WRONG = [
    (("--model", "no-such"), "unknown model 'no-such'"),
    (("--data", "nowhere"), "nowhere"),
    (("--preset", "gait"), "gait"),
    (("--bits", "99"), "99"),
    (("--set", "calibration.smaples=3"), "smaples"),
]


@pytest.mark.parametrize(("words", "told"), [*WRONG, (("--set", "gptq.dmap=1"), "dmap")])
def test_a_wrong_flag_is_refused_before_any_check(monkeypatch, words, told) -> None:
    monkeypatch.setattr(isolation, "check_isolated", lambda target, limit: pytest.fail("checked"))
    done = run_command("regress", "gptq", "--base", "rtn", *words)
    assert done.code == 2 and told in done.err, done


@pytest.mark.parametrize(
    ("words", "told"),
    [*WRONG, (("--set", "mine_of_the_gate.dmap=1"), "dmap"), (("--set", "other.a=1"), "other")],
)
def test_a_wrong_flag_is_refused_before_a_files_second_check(
    monkeypatch, tmp_path: Path, words, told
) -> None:
    """A file is imported in another process first, which the first check has seen to."""
    monkeypatch.setattr("qbench.registry._plugins", {})

    def checks(target, limit):
        files = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
        assert target not in files, "imported before it was checked"
        yield Verdict("mine_of_the_gate", "check_is_a_value", "ok")
        pytest.fail("a second check")

    monkeypatch.setattr(isolation, "check_isolated", checks)
    (tmp_path / "mine.py").write_text(PLUGIN)
    done = run_command("regress", tmp_path / "mine.py", "--base", "rtn", *words)
    assert done.code == 2 and told in done.err, done
