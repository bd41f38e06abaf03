"""A sample of `benchmarks/fuzz.py`: damaged checkpoints load or are refused by name, in bounded time and memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_three_hundred_damaged_checkpoints():
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.py"
    command = [sys.executable, "-P", str(script), "--cases", "300"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "300 cases" in done.stdout and "refused" in done.stdout and "loaded" in done.stdout
