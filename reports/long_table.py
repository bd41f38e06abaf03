"""The long table for programs, one row per score or figure of latency: `leaderboard.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from qbench.comparison.judging import code_of, declared_in, protocol
from qbench.comparison.lint import lint
from qbench.comparison.pairs import Pairs, pairs_of
from qbench.files.atomic import write_text
from qbench.outside_text import csv_cell
from qbench.records import Caution, Record, Score
from qbench.reports.cell_names import ordered, packages_text, params_text
from qbench.reports.headline import asked
from qbench.reports.latencies import figures
from qbench.tasks.registry import unit_of

COLUMNS = (
    "model",
    "method",
    "params",
    "bits",
    "group_size",
    "bits_per_weight",
    "task",
    "metric",
    "filter",
    "value",
    "stderr",
    "low",
    "high",
    "n",
    "difference",
    "difference_low",
    "difference_high",
    "difference_kind",
    "pairs",
    "clusters",
    "status",
    "reason",
    "cell",
    "unit",
    "direction",
    "shots",
    "limit",
    "length",
    "asked",
    "protocol",
    "protocol_hash",
    "warnings",
    "layers",
    "stored_as",
    "revision",
    "grid",
    "calibration",
    "calibration_hash",
    "seed",
    "source",
    "quantization",
    "dtype",
    "device",
    "batch_size",
    "evaluation",
    "packages",
    "timed_on",
)
# Columns of text, empty where a row has none; group_size among them, for it may be `channel`.
WORDS = (
    "model",
    "method",
    "params",
    "group_size",
    "task",
    "metric",
    "filter",
    "difference_kind",
    "status",
    "reason",
    "cell",
    "unit",
    "direction",
    "asked",
    "protocol",
    "protocol_hash",
    "warnings",
    "layers",
    "stored_as",
    "revision",
    "grid",
    "calibration",
    "calibration_hash",
    "source",
    "quantization",
    "dtype",
    "device",
    "evaluation",
    "packages",
    "timed_on",
)
# pandas' Int64 has missing values, which n of a failed cell is. Bits are whole numbers beside
# fractions, and stay as they are.
_NUMBERS = {
    "bits_per_weight": "float64",
    "value": "float64",
    "stderr": "float64",
    "low": "float64",
    "high": "float64",
    "n": "Int64",
    "difference": "float64",
    "difference_low": "float64",
    "difference_high": "float64",
    "pairs": "Int64",
    "clusters": "Int64",
    "shots": "Int64",
    "limit": "Int64",
    "length": "Int64",
    "seed": "Int64",
    "batch_size": "Int64",
}


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """`leaderboard.csv`, in which no text is a spreadsheet's formula."""
    table = long_table(records, folder)
    words = list(WORDS)
    table[words] = table[words].map(csv_cell)
    text = table.to_csv(index=False, lineterminator="\n")
    return [write_text(folder / "leaderboard.csv", text)]


def long_table(records: Sequence[Record], folder: Path | None = None) -> pd.DataFrame:
    """COLUMNS, one row per score and per figure of latency.

    A failed or skipped cell is one row without a score. low, high: of a share of right answers, its
    95 % interval.
    folder: of the run, where the items lie. A difference is from the unquantized model on the same
    items, with its 95 % interval: by its kind a `ratio` of perplexities, `points` of percent, or a
    plain `difference`. asked: the hash of how the task was asked; scores with different ones are
    not comparable. protocol, protocol_hash: of the whole run. warnings: the kinds of `Caution`.
    layers: what single layers and the head have in place of the bits. stored_as: of a model that
    others have quantized, how; its divergences are from the model as it is stored. grid:
    `symmetric`, or empty. calibration_hash: of its text. source, quantization, evaluation: hashes
    of the method's code, of that by which all methods are applied, and of that which judges, behind
    which stands a hash of what the score's task declares. What
    follows `layers` tells cells apart that are alike in all before it; timed_on: the machine of a
    latency.
    """
    records = ordered(records)
    pairs = pairs_of(records, folder)
    tasks = list(dict.fromkeys(score.task for record in records for score in record.scores))
    cautions = lint(records, pairs)
    rows: list[dict[str, object]] = []
    for record in records:
        rows += _rows(record, tasks, pairs, cautions.get(record.id, []))
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object).astype(_NUMBERS)


def _rows(
    record: Record, tasks: Sequence[str], pairs: Pairs, cautions: Sequence[Caution]
) -> list[dict[str, object]]:
    """The rows of one cell, its scores by task, metric and filter, then its latency.

    tasks: in their order. cautions: about the cell, and about its tasks.
    """
    cell = _cell_columns(record)
    if record.status != "ok" or not record.scores:
        return [cell]
    timed = []
    for figure in figures(record):
        columns = {"metric": figure.metric, "value": figure.value, "unit": figure.unit}
        if record.latency:
            columns["timed_on"] = record.latency.place
        place = {"task": "latency", "filter": "none", "direction": figure.better}
        timed.append(cell | place | columns)
    scores = sorted(
        record.scores, key=lambda score: (tasks.index(score.task), score.metric, score.filter)
    )
    rows = []
    for score in scores:
        score_columns = {
            "task": score.task,
            "metric": score.metric,
            "filter": score.filter,
            "value": score.value,
            "stderr": score.stderr,
            "low": score.low,
            "high": score.high,
            "n": score.n,
            "unit": unit_of(score.task, score.metric).replace(
                "%", "share"
            ),  # values are not times 100
            "direction": "higher" if score.higher_is_better else "lower",
        }
        score_columns |= _protocol_columns(record, score.task)
        said = [caution.kind for caution in cautions if caution.task in (None, score.task)]
        score_columns["warnings"] = " ".join(dict.fromkeys(said))
        rows.append(cell | score_columns | _difference_columns(record, score, pairs))
    return rows + timed


def _protocol_columns(record: Record, task: str) -> dict[str, object]:
    """How the task of a score was asked."""
    spec = protocol(record, task)
    if spec is None:
        return {}
    return {
        "shots": spec.num_fewshot,
        "limit": spec.limit,
        "length": spec.length,
        "asked": asked(record, task),
        "evaluation": ":".join(filter(None, (code_of(record), declared_in(record, task)))),
    }


def _difference_columns(record: Record, score: Score, pairs: Pairs) -> dict[str, object]:
    """What a score differs by from the unquantized model's; nothing where it cannot be paired."""
    contrast = pairs.from_unquantized(record, (score.task, score.metric, score.filter))
    if contrast is None:
        return {}
    value, low, high = contrast.figures
    return {
        "difference": value,
        "difference_low": low,
        "difference_high": high,
        "difference_kind": contrast.kind,
        "pairs": contrast.difference.items,
        "clusters": contrast.difference.clusters,
    }


def _cell_columns(record: Record) -> dict[str, object]:
    """What all rows of a cell have in common."""
    cell = record.cell
    columns: dict[str, object] = dict.fromkeys(WORDS, "")
    columns |= {
        "model": cell.model,
        "method": cell.method,
        "params": params_text(cell),
        "bits_per_weight": record.bits_per_weight.get("total"),
        "status": record.status,
        "reason": record.reason or "",
        "cell": record.id,
        "protocol": record.protocol.get("name", ""),
        "protocol_hash": record.protocol.get("hash", ""),
        "stored_as": cell.stored_as or "",
        "revision": cell.revision,
        "seed": cell.seed,
        "source": cell.source,
        "quantization": cell.quantization,
        "dtype": cell.dtype,
        "device": cell.device,
        "batch_size": cell.batch_size,
        "evaluation": code_of(record),
        "packages": packages_text(record),
    }
    if cell.calibration:
        sample = cell.calibration
        windows = f"{sample.data}:{sample.samples}x{sample.length} {sample.dtype}"
        columns["calibration"] = windows
        columns["calibration_hash"] = sample.sha256
    if cell.scheme:
        columns["grid"] = "symmetric" if cell.scheme.symmetric else ""
        columns["bits"] = cell.scheme.width
        columns["group_size"] = str(cell.scheme.group_size or "channel")
        columns["layers"] = cell.scheme.exceptions
    return columns
