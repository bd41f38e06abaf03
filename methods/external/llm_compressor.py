"""llm-compressor."""

from __future__ import annotations

from qbench.external.contract import Package

PACKAGE = Package(
    "llm-compressor", about="", worker="llm_compressor_worker.py", module="llmcompressor"
)
