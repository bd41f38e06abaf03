"""Every score as a line of JSON, for programs: `leaderboard.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qbench.files.atomic import write_text
from qbench.records import Record
from qbench.reports.long_table import long_table


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """`leaderboard.jsonl`: the rows of the CSV; null where a row has no value."""
    text = long_table(records, folder).to_json(orient="records", lines=True, force_ascii=False)
    return [write_text(folder / "leaderboard.jsonl", text)]
