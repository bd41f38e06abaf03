"""Source code to evaluate on: modules of the standard library of the Python that runs this.

It is there wherever qbench is, and other tasks do not use it. Another version of Python has another
text, and so another hash.
"""

from __future__ import annotations

import hashlib
import sysconfig
from functools import cache
from pathlib import Path
from random import Random

from qbench.errors import DataError

NAME = "python-standard-library"
MODULES = 64
SHORTEST, LONGEST = 4_000, 20_000  # characters of a module that is taken, and that are taken of it
SEED = 1234  # of the choice of modules


@cache
def code_texts() -> tuple[str, ...]:
    """The beginnings of modules, drawn by a fixed seed; DataError where they have no source."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    texts = []
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(text) >= SHORTEST:
            texts.append(text[:LONGEST])
    if not texts:
        raise DataError(f"{folder} holds no source of Python's standard library; leave out `code`")
    Random(SEED).shuffle(texts)
    return tuple(texts[:MODULES])


@cache
def code_sha256() -> str:
    """Of all texts together."""
    return hashlib.sha256("\0".join(code_texts()).encode()).hexdigest()
