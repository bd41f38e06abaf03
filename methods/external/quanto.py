"""quanto."""

from __future__ import annotations

from qbench.external.contract import Package

PACKAGE = Package("quanto", about="", worker="quanto_worker.py", module="optimum.quanto")
