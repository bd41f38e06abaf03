"""A sample of `benchmarks/abuse`: runs that are killed or doubled end with the same table."""

from __future__ import annotations

import pytest

from fresh_python import run_benchmark


@pytest.mark.long
def test_three_kills_and_a_pair():
    done = run_benchmark("abuse", "--kills", 3, "--pairs", 1, "--no-damage")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "0 problems" in done.stdout
