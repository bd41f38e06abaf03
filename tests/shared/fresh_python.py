"""Python in a process of its own, where nothing is imported yet."""

from __future__ import annotations

import subprocess
import sys


def run_python(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """`python -P ARGUMENTS` with its output as text; `options` are those of subprocess.run."""
    command = [sys.executable, "-P", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)
