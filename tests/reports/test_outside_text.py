"""Text of records from elsewhere means itself in every file of a report."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from qbench.records import Caution, Record
from qbench.reports.registry import write_reports
from synthetic_records import TIMED, record, stored

HIDDEN = "\x1b[31m\u202e\x07\u2028"  # a colour, a mark that turns text around, a bell, a line's end
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]")


def hide(cell: Record) -> Record:
    """The record with hidden characters in every text that may hold any."""
    log = {f"model.layers.0{HIDDEN}": {"output_errors": {f"q_proj{HIDDEN}": 0.1, "k_proj": 0.2}}}
    log["block 0"] = {"initial": 0.4, "final": 0.1, "losses": [0.4, 0.1]}
    return cell.model_copy(
        update={
            "latency": TIMED.model_copy(update={"device": f"CPU{HIDDEN}"}),
            "log": log,
            "environment": {"packages": {"torch": HIDDEN}, f"key{HIDDEN}": HIDDEN},
            "command": f"qbench run{HIDDEN}",
            "protocol": {"name": HIDDEN, "hash": HIDDEN},
            "warnings": (Caution(kind="bos", text=HIDDEN),),
        }
    )


@pytest.mark.slow
def test_nothing_hidden_stands_in_any_file(tmp_path: Path) -> None:
    texts = {"model": f"tiny{HIDDEN}", "params": {f"clip{HIDDEN}": HIDDEN}}
    texts |= {"source": HIDDEN, "evaluation": HIDDEN, "dtype": HIDDEN, "revision": HIDDEN}
    cells = [
        record("none", None, **{"model": texts["model"]}),
        record("rtn", 3, 0.5, model=texts["model"]),
        record("gptq", 3, 0.2, model=texts["model"]),
    ]
    made = []
    for each in cells:
        cell = each.cell.model_copy(update=texts | {"method": each.cell.method})
        few = each.scores[:3]  # of each a picture
        made.append(each.model_copy(update={"cell": cell, "id": cell.id, "scores": few}))
    reason = f"out of memory{HIDDEN}"
    lost = record("awq", 3, status="failed", reason=reason, scores=(), model=f"=tiny{HIDDEN}")
    records = [*map(hide, stored(made, tmp_path)), lost]
    paths = write_reports(records, tmp_path)
    shown = 0
    for path in paths:
        if path.suffix in (".html", ".csv", ".md", ".jsonl", ".tex", ".svg"):
            text = path.read_text(encoding="utf-8")
            assert not RAW.search(text), (path.name, RAW.search(text))
            shown += "x1b" in text
    assert shown > 5
    table = pd.read_csv(tmp_path / "leaderboard.csv", dtype=str, keep_default_na=False)
    assert "'=tiny\\x1b[31m\\u202e\\x07\\u2028" in set(table["model"])
