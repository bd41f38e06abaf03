"""A sample of `benchmarks/abuse.py`: runs that are killed or doubled end with the same table."""

from __future__ import annotations

import pytest

from fresh_python import run_python
from places import ROOT


@pytest.mark.slow
def test_three_kills_and_a_pair():
    script = ROOT / "benchmarks" / "abuse.py"
    done = run_python(script, "--kills", 3, "--pairs", 1, "--no-damage")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "0 problems" in done.stdout
