"""auto-round."""

from __future__ import annotations

from qbench.external.contract import Package

PACKAGE = Package("auto-round", about="", worker="auto_round_worker.py", module="auto_round")
