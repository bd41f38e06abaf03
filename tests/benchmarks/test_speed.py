"""`make speed` compares by a yardstick: slow work is a regression, not a slow machine."""

from __future__ import annotations

import os

import pytest

from fresh_python import run_python
from places import ROOT

CONFTEST = ROOT / "benchmarks" / "conftest.py"
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
        named = {"WORK": str(work), "YARDSTICK": str(yardstick)}
        alone = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "pytest_benchmark.plugin"}
        # pytest-benchmark measures nothing where it believes that tests run beside each other.
        outside = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
        timer = ("--benchmark-storage=stored", "--benchmark-timer=time.process_time")
        return run_python(
            *("-m", "pytest", "-q", "speed.py", *timer, *options),
            cwd=tmp_path,
            env=outside | named | alone,
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
