"""`make speed` compares by ratio to a yardstick: slow work is a regression, a slow machine not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFTEST = Path(__file__).resolve().parents[2] / "benchmarks" / "conftest.py"
BENCHMARK = """
import os, time

def busy(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def test_work(in_turns):
    work, yardstick = (float(os.environ[name]) for name in ("WORK", "YARDSTICK"))
    in_turns(lambda: busy(work), lambda: busy(yardstick), 5)
"""


@pytest.fixture
def compare(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST.read_text())
    (tmp_path / "speed.py").write_text(BENCHMARK)

    def run(work, yardstick, *options):
        command = [
            sys.executable,
            "-P",
            "-m",
            "pytest",
            "-q",
            "speed.py",
            "--benchmark-storage=stored",
        ]
        command += ["--benchmark-timer=time.process_time", *options]
        named = {"WORK": str(work), "YARDSTICK": str(yardstick)}
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | named, capture_output=True, text=True
        )

    assert run(0.01, 0.01, "--benchmark-save=first").returncode == 0
    return lambda work, yardstick: (
        run(
            work, yardstick, "--benchmark-compare=0001", "--benchmark-compare-fail=min:30%"
        ).returncode
    )


def test_a_slower_machine_is_no_regression_and_slower_work_is(compare):
    assert compare(0.03, 0.03) == 0
    assert compare(0.03, 0.01) != 0
