"""gptqmodel."""

from __future__ import annotations

from qbench.external.contract import Package

PACKAGE = Package("gptqmodel", about="", worker="gptqmodel_worker.py", module="gptqmodel")
