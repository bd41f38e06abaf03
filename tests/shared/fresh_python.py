"""Python in a process of its own, where nothing is imported yet."""

from __future__ import annotations

import os
import subprocess
import sys

from places import ROOT


def run_python(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """`python -P ARGUMENTS` with its output as text; `options` are those of subprocess.run."""
    command = [sys.executable, "-P", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def run_benchmark(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -P -m NAME ARGUMENTS` of a package in benchmarks/."""
    paths = [str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return run_python("-m", name, *arguments, env=environment)
