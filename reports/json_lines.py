"""Every score as a line of JSON, for programs: `leaderboard.jsonl`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from qbench.files.atomic import write_text
from qbench.records import Record
from qbench.reports.long_table import long_table


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """`leaderboard.jsonl`: the rows of the CSV, to the last digit; null where there is no value.

    Texts are those of the records to the last character, in ASCII.
    """
    rows = long_table(records, folder).astype(object).to_dict("records")
    lines = []
    for row in rows:
        known = {name: _value(value) for name, value in row.items()}
        lines.append(f"{json.dumps(known, allow_nan=False)}\n")
    return [write_text(folder / "leaderboard.jsonl", "".join(lines))]


def _value(value: object) -> object:
    """None for what is missing or not finite, which JSON has no numbers for."""
    if value is pd.NA or (isinstance(value, float) and not math.isfinite(value)):
        return None
    return value
