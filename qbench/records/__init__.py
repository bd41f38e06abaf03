"""Cells, scores and records: the JSON that a run writes, and the identity of each cell."""

from __future__ import annotations

from qbench.records.cell import (
    CalibrationSpec,
    Cell,
    Scalar,
    TaskSpec,
    canonical_sha256,
    digest,
    labels,
)
from qbench.records.frozen import Bits
from qbench.records.latency import Decoding, Latency, Product, Spread, threads_in_words
from qbench.records.record import SCHEMA, Caution, Judging, Record, Score

__all__ = [
    "SCHEMA",
    "Bits",
    "CalibrationSpec",
    "Caution",
    "Cell",
    "Decoding",
    "Judging",
    "Latency",
    "Product",
    "Record",
    "Scalar",
    "Score",
    "Spread",
    "TaskSpec",
    "canonical_sha256",
    "digest",
    "labels",
    "threads_in_words",
]
