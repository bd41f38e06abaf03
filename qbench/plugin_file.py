"""A Python file that a user names as a plug-in, imported as a module of its own."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from qbench.errors import ConfigError
from qbench.files.ordinary import is_file


def import_plugin_file(path: Path) -> ModuleType:
    """Execute a plug-in's file, under the same module name every time.

    ConfigError naming the file where it is absent, is not Python, or raises.
    """
    if not is_file(path):
        raise ConfigError(
            f"plug-in {str(path)!r} is not a file; "
            "give the path of a Python file that defines methods or kernels"
        )
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"qbench_plugin_{path.stem}_{digest}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"plug-in {str(path)!r} is not a Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise ConfigError(
            f"plug-in {str(path)!r} raised {type(error).__name__} on import: {error}"
        ) from error
    return module
