"""What the server works out once, so that the process of a cell need not: a third of a small one.

Only what depends on nothing but its key: the trees of our methods' sources and the settings of our
tasks, which are kept by their text, so that a file that was edited since is read again; and the
table by which transformers renames the weights of checkpoints, made anew in every process else.
"""

from __future__ import annotations

import pkgutil
from contextlib import suppress
from pathlib import Path

from qbench.errors import ConfigError
from qbench.method_source import Unreadable, module_file, read_declarations
from qbench.tasks.harness import read_task

ROOMS = ("methods", "tasks")


def _warm() -> None:
    methods, tasks = (Path(str(module_file(f"qbench.{room}"))).parent for room in ROOMS)
    for info in pkgutil.iter_modules([str(methods)]):
        with suppress(Unreadable, OSError, ValueError, SyntaxError):  # it is told where it is used
            read_declarations(f"qbench.methods.{info.name}")
    for path in tasks.glob("*.yaml"):
        with suppress(ConfigError):
            read_task(path)
    with suppress(ImportError):  # of an older transformers, which has no table
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("llama")


_warm()
