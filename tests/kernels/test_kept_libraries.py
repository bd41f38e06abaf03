"""A source for the CPU is compiled again where what it is made of changes, and only then."""

from __future__ import annotations

import ctypes
import os
import time

import pytest

import standard_headers
from cuda_on_cpu import needs_compiler
from standard_headers import UNUSED, compile_library

pytestmark = needs_compiler


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """A function: what the source gives with these options, and whether it was compiled for it."""
    monkeypatch.setattr(standard_headers, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(standard_headers, "HEADERS", "#include <cstddef>\n")
    source = tmp_path / "source" / "entry.cc"
    source.parent.mkdir()
    source.write_text('#include "number.h"\nextern "C" int number() { return NUMBER + MORE; }\n')
    (source.parent / "number.h").write_text("#define NUMBER 1\n")
    runs, run, count = [], standard_headers._run, iter(range(100))
    monkeypatch.setattr(standard_headers, "_run", lambda *words: [runs.append(words), run(*words)])

    def number(*options):
        library = tmp_path / f"{next(count)}.so"
        runs.clear()
        compile_library(source, library, *options)
        return ctypes.CDLL(str(library)).number(), bool(runs)

    return number


def test_what_is_kept_is_taken_until_something_changes(compiled, tmp_path):
    assert compiled("-DMORE=1") == (2, True)
    assert compiled("-DMORE=1") == (2, False)
    assert compiled("-DMORE=2") == (3, True)
    (tmp_path / "source" / "number.h").write_text("#define NUMBER 5\n")
    assert compiled("-DMORE=1") == (6, True)
    assert compiled("-DMORE=1") == (6, False)


def test_what_nobody_has_asked_for_is_removed(compiled, tmp_path):
    compiled("-DMORE=1")
    (old,) = (tmp_path / "kept").iterdir()
    os.utime(old, (0, time.time() - 2 * UNUSED))
    assert compiled("-DMORE=1") == (2, False) and compiled("-DMORE=2") == (3, True)
    assert old.exists(), "it was asked for"
    os.utime(old, (0, time.time() - 2 * UNUSED))
    compiled("-DMORE=3")
    assert not old.exists() and len(list((tmp_path / "kept").iterdir())) == 2
