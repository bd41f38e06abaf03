"""A sample of `benchmarks/fuzz`: damaged checkpoints load or are refused by name.

Both in bounded time and memory.
"""

from __future__ import annotations

import pytest

from fresh_python import run_benchmark


@pytest.mark.long
def test_three_hundred_damaged_checkpoints():
    done = run_benchmark("fuzz", "--cases", 300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "300 cases" in done.stdout and "refused" in done.stdout and "done" in done.stdout
