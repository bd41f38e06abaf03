"""Records that no run has made, for reports: cells whose scores follow from one number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from paired_items import with_items
from qbench.contracts import Scheme
from qbench.records import (
    CalibrationSpec,
    Cell,
    Decoding,
    Latency,
    Product,
    Record,
    Score,
    TaskSpec,
)

REASON = "<script>alert(1)</script> | not finite"
DAMAGE = {
    "rtn": (11.0, 0.35, 0.06),
    "greedy": (2.9, 0.5, 0.13),
    "alternating": (1.6, 0.2, 0.05),
    "gptq": (1.9, 0.2, 0.03),
}
TASKS = tuple(
    TaskSpec(name=f"mini-{name}", data=name, sha256="a" * 64, length=512)
    for name in ("text", "divergence", "arc_easy", "gsm8k")
)

SPREAD = (1e-4, 0.9e-4, 1.2e-4)
TIMED = Latency(
    device="Some CPU",
    threads=1,
    dtype="float32",
    products=tuple(
        Product(out=64, columns=32, rows=rows, layers=2, kernel="cpu", seconds=SPREAD, dense=SPREAD)
        for rows in (1, 16)
    ),
    decoding=Decoding(
        prompt=8,
        tokens=8,
        packed=(20.0, 19.0, 21.0),
        dense=(10.0, 9.0, 11.0),
        packed_prefill=(90.0, 80.0, 99.0),
        dense_prefill=(90.0, 80.0, 99.0),
        packed_peak_bytes=2_000_000,
        dense_peak_bytes=8_000_000,
    ),
)


def record(
    method: str, bits: int | None, damage: float = 0.0, model: str = "tiny", **changes: object
) -> Record:
    scheme = Scheme(bits, 64) if bits else None
    calibration = (
        CalibrationSpec(data="cal", sha256="c" * 64, samples=8, length=512, dtype="float32")
        if method == "gptq"
        else None
    )
    params = {"period": 4, "clip": "search"} if method == "rtn" else {}
    cell = Cell(
        **{
            "model": model,
            "revision": "main",
            "method": method,
            "params": params,
            "source": "0" * 12,
            "scheme": scheme,
        },
        **{"calibration": calibration, "tasks": TASKS, "dtype": "float32", "seed": 0},
    )
    found = {
        "id": cell.id,
        "cell": cell,
        "status": "ok",
        "scores": scores(damage, bits),
        "bits_per_weight": {
            "total": bits + (0.5 if method in ("rtn", "gptq") else 0.25 * (bits + 1))
            if bits
            else 16.0
        },
        "quantize_seconds": 3.25 if bits else None,
        "quantize_peak_bytes": 812_345_678 if bits else None,
        "environment": {"hardware": {"cpu": "Xeon & co"}, "packages": {"torch": "2.11.0"}},
        "command": f"qbench run --model {model} --methods {method}",
    }
    return Record.model_validate(found | changes)


def scores(damage: float, bits: int | None) -> tuple[Score, ...]:
    ppl, acc = 18.9 * math.exp(damage), 0.25 + 0.27 * math.exp(-damage)
    rows = [("text", "perplexity", "none", ppl, ppl / 90, False)]
    if bits:
        rows.append(("divergence", "kl_mean", "none", 0.9 * damage, 0.03 * damage, False))
        rows.append(("divergence", "top1_agreement", "none", math.exp(-0.7 * damage), 0.004, True))
    rows += [
        ("arc_easy", "acc", "none", acc, 0.025, True),
        ("arc_easy", "gold_logprob", "none", -1.4 - damage, 0.05, True),
    ]
    rows += [
        ("gsm8k", "exact_match", kind, 0.18 * acc, 0.02, True)
        for kind in ("strict-match", "flexible-extract")
    ]
    rows += [("gsm8k", "gold_nll", "none", 0.6 + damage, 0.012, False)]
    return tuple(
        Score(task=f"mini-{t}", metric=m, filter=f, value=v, stderr=e, n=100, higher_is_better=h)
        for t, m, f, v, e, h in rows
    )


def stored(records: Sequence[Record], folder: Path) -> list[Record]:
    """The records with sample files of 100 items each, whose means are their scores."""
    return [with_items(record, folder) for record in records]


def failed(method: str, bits: int) -> Record:
    return record(method, bits, status="failed", reason=REASON, scores=(), bits_per_weight={})
