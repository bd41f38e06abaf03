"""Records for comparisons, with items, as runs store them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from paired_items import ITEMS, with_items
from qbench.comparison.matching import Side
from qbench.contracts import Scheme
from qbench.experiment.store import Store
from qbench.records import CalibrationSpec, Cell, Record, Score, TaskSpec

TASKS = tuple(
    TaskSpec(name=name, data=name, sha256="a" * 64, limit=ITEMS)
    for name in ("wikitext", "divergence", "arc_easy", "gsm8k")
)
OF_RECORD = ("status", "reason", "quantize_seconds")
CALIBRATION = CalibrationSpec(data="c", sha256="c" * 64, samples=8, length=64, dtype="float32")


def cell(
    method: str = "gptq",
    bits: int | None = 3,
    seed: int = 0,
    damage: float = 0.2,
    **changes: object,
) -> Record:
    """A record whose scores follow from the damage, without items."""
    facts = {
        "model": "tiny",
        "revision": "main",
        "method": method,
        "params": {},
        "source": "0" * 12,
        "scheme": Scheme(bits, 64) if bits else None,
        "calibration": CALIBRATION if method == "gptq" else None,
        "tasks": TASKS,
        "dtype": "float32",
        "seed": seed,
    }
    of_record = {name: changes.pop(name) for name in OF_RECORD if name in changes}
    made = Cell(**facts | changes)
    rows = [
        ("wikitext", "perplexity", 19 * math.exp(damage), False),
        ("arc_easy", "acc", 0.6 - 0.1 * damage, True),
        ("gsm8k", "gold_nll", 0.7 + damage, False),
    ]
    if bits:
        rows.insert(1, ("divergence", "kl_mean", 0.5 * damage + 0.05, False))
    scores = [
        Score(task=t, metric=m, value=v, stderr=0.1, n=ITEMS, higher_is_better=h)
        for t, m, v, h in rows
    ]
    return Record(
        id=made.id,
        cell=made,
        status="ok",
        scores=tuple(scores),
        bits_per_weight={"total": 3.25},
        quantize_seconds=2.0,
        environment={"packages": {"torch": "2.11.0", "lm_eval": "0.4.13"}},
        command="qbench run",
    ).model_copy(update=of_record)


def side(folder: Path, *records: Record, clusters: Sequence[str] | None = None) -> Side:
    """The records with items, stored as a run stores them."""
    store = Store(folder)
    kept = []
    for record in records:
        whole = with_items(record, folder, clusters) if record.status == "ok" else record
        store.write_record(whole)
        kept.append(whole)
    return Side(folder.name, folder, tuple(kept))
