"""The wide table as a DataFrame, in which a test looks a value up by its column."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from qbench.records import Record
from qbench.reports.tables import grid


def wide_table(records: Sequence[Record], folder: Path | None = None) -> pd.DataFrame:
    """One row per cell, for people: every headline score with its difference or error."""
    columns, rows = grid(records, folder)
    return pd.DataFrame([[entry.whole for entry in row] for row in rows], columns=columns)
