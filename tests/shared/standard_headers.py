"""C++ sources compiled for the CPU, with the standard headers compiled once for all of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

COMPILER = shutil.which("g++")
OPTIONS = ("-std=c++17", "-O1", "-fno-gnu-unique", "-fPIC", "-ffp-contract=off", "-Wall")
HEADERS = """
#include <ucontext.h>
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>
"""


def compile_library(source: Path, library: Path, *options: str) -> None:
    """Compile a source to a shared library; headers are kept in the library's folder."""
    headers = library.parent / "standard.h"
    if not headers.exists():
        headers.write_text(HEADERS)
        # Where it does not fit the options, it is passed over, and the header is read.
        _run("-x", "c++-header", "-o", f"{headers}.gch", str(headers))
    more = ["-shared", "-Wno-unknown-pragmas", "-Werror", *options]
    _run("-include", str(headers), *more, "-o", str(library), str(source))


def _run(*words: str) -> None:
    done = subprocess.run([COMPILER, *OPTIONS, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
