"""C++ sources compiled for the CPU, each once for as long as nothing that it is made of changes.

The standard headers are compiled once for all of them.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from places import ROOT

COMPILER = shutil.which("g++")
OPTIONS = ("-std=c++17", "-O1", "-fno-gnu-unique", "-fPIC", "-ffp-contract=off", "-Wall")
LIBRARY = ("-shared", "-Wno-unknown-pragmas", "-Werror")
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
KEPT = ROOT / "build" / "on_cpu"  # the libraries, by all that they are made of
UNUSED = 7 * 24 * 3600  # seconds after which one that nobody has asked for is removed


def compile_library(source: Path, library: Path, *options: str) -> None:
    """Compile a source, with the files beside it, to a library, or take the one that is kept.

    Headers are kept in the library's folder.
    """
    kept = KEPT / f"{_hash_of(source, options)}.so"
    if kept.exists():
        os.utime(kept)
        shutil.copy(kept, library)
        return
    headers = library.parent / "standard.h"
    if not headers.exists():
        headers.write_text(HEADERS)
        # Where it does not fit the options, it is passed over, and the header is read.
        _run("-x", "c++-header", "-o", f"{headers}.gch", str(headers))
    _run("-include", str(headers), *LIBRARY, *options, "-o", str(library), str(source))
    _keep(library, kept)


def _hash_of(source: Path, options: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr([_version(), OPTIONS, LIBRARY, HEADERS, options]).encode())
    for path in sorted(source.parent.iterdir()):
        digest.update(repr([path.name, path.read_bytes()]).encode())
    return digest.hexdigest()


@functools.cache
def _version() -> str:
    return subprocess.run([COMPILER, "-v"], capture_output=True, text=True, check=True).stderr


def _keep(library: Path, kept: Path) -> None:
    """Other processes may keep the same at once, and see a whole one or none."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for other in KEPT.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - other.stat().st_mtime > UNUSED:
                other.unlink()
    part = kept.with_suffix(f".{os.getpid()}")
    shutil.copyfile(library, part)
    part.replace(kept)


def _run(*words: str) -> None:
    done = subprocess.run([COMPILER, *OPTIONS, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
