"""An environment that looks installed, and is the one that the tests run in."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from places import ROOT
from qbench.external.contract import Package
from qbench.external.environments import MARK, Installed
from qbench.external.packages import requirements

FAKE = ROOT / "tests" / "shared" / "fake_package" / "fake.py"


def pretend(package: Package, folder: Path) -> Path:
    """Put an environment for a package into a folder of environments."""
    place = folder / package.name
    python = place / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    packages = ["fake==1", *requirements(package).read_text().splitlines()]
    installed = Installed("3", "none", 1.0, packages)
    (place / MARK).write_text(json.dumps(asdict(installed)))
    return place
