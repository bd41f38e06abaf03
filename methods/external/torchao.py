"""torchao."""

from __future__ import annotations

from qbench.external.contract import Package

PACKAGE = Package("torchao", about="", worker="torchao_worker.py", module="torchao")
