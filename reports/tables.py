"""Tables from records: the long one for programs (`leaderboard.csv`), the wide one for people."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from qbench.records import Record
from qbench.reports.headline import (
    MINI_NOTICE,
    Headline,
    headlines,
    names,
    number,
    ordered,
    params_text,
    protocol,
    require,
)

COLUMNS = (
    *(
        "model",
        "method",
        "params",
        "bits",
        "group_size",
        "bits_per_weight",
        "task",
        "metric",
        "filter",
    ),
    *("value", "stderr", "n", "status", "reason", "cell"),
)
WORDS = (
    "model",
    "method",
    "params",
    "group_size",
    "task",
    "metric",
    "filter",
    "status",
    "reason",
    "cell",
)
CAPTION = (
    "Values are shown with one standard error. Bold: the best value among the cells of one model and one number of "
    "nominal bits, where it is better than the next one at all; this is no claim of significance, and cells of equal "
    "nominal bits may differ in measured bits per weight."
)


@dataclass(frozen=True)
class Entry:
    """One field of the wide table: what people read, what it sorts by, and whether it is the best of its kind."""

    text: str
    value: float | str | None = None
    best: bool = False


def best(records: Sequence[Record], headline: Headline) -> set[str]:
    """The cells that are strictly best among their model, nominal bits and protocol."""
    rivals: dict[object, list[tuple[float, str]]] = {}
    for record in records:
        score, scheme = headline.of(record), record.cell.scheme
        if score and scheme and math.isfinite(score.value):
            key = (record.cell.model, scheme.bits, protocol(record, headline.task))
            rivals.setdefault(key, []).append(
                (score.value * (-1 if headline.higher_is_better else 1), record.id)
            )
    ranked = [sorted(group) for group in rivals.values() if len(group) > 1]
    return {first[1] for first, second, *_ in ranked if first[0] < second[0]}


def grid(records: Sequence[Record]) -> tuple[list[str], list[list[Entry]]]:
    """The wide table with everything a page needs: its columns, and one row of entries per cell."""
    records, columns = ordered(records), headlines(records)
    called, winners = names(records, group=False), {h: best(records, h) for h in columns}
    many = len({record.cell.model for record in records}) > 1
    trained = any(block_loss(record, "final") for record in records)
    rows = []
    for record in records:
        row = [Entry(record.cell.model, record.cell.model)] if many else []
        row += _identity(record, called[record.id])
        for headline in columns:
            score = headline.of(record)
            text = number(score.value, score.stderr, score.metric) if score else ""
            row.append(Entry(text, score.value if score else None, record.id in winners[headline]))
        seconds, peak = record.quantize_seconds, record.quantize_peak_bytes
        row.append(Entry("" if seconds is None else f"{seconds:.1f}", seconds))
        row.append(Entry("" if peak is None else f"{peak / 1e6:.0f}", peak))
        for loss in (block_loss(record, "initial"), block_loss(record, "final")) if trained else ():
            row.append(Entry("" if loss is None else f"{loss:.4g}", loss))
        rows.append(row)
    first = ["model"] * many + ["method", "bits", "group", "bits/weight (measured)"]
    last = ["quantize seconds", "peak memory MB"] + [
        "block loss at the start",
        "block loss",
    ] * trained
    return [*first, *(h.title for h in columns), *last], rows


def block_loss(record: Record, key: str) -> float | None:
    """Geometric mean over the blocks of the loss that a method which trains has logged; None where there is none."""
    found = [entry.get(key) for entry in record.log.values() if isinstance(entry, dict)]
    losses = [loss for loss in found if isinstance(loss, float) and loss > 0]
    return math.exp(sum(map(math.log, losses)) / len(losses)) if losses else None


def _identity(record: Record, name: str) -> list[Entry]:
    scheme, bits = record.cell.scheme, record.bits_per_weight.get("total")
    group = scheme.group_size if scheme else None
    return [
        Entry(name if record.status == "ok" else f"{name} ({record.status})", name),
        Entry(str(scheme.bits), scheme.bits) if scheme else Entry(""),
        Entry(str(group or "channel"), group or 1 << 30) if scheme else Entry(""),
        Entry("" if bits is None else f"{bits:.2f}", bits),
    ]


def wide_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row per cell, for people: every headline score with its standard error."""
    columns, rows = grid(records)
    return pd.DataFrame([[entry.text for entry in row] for row in rows], columns=columns)


def long_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row per score, for programs; a failed or skipped cell is one row without a score."""
    records = ordered(records)
    rows: list[dict[str, object]] = []
    tasks = list(dict.fromkeys(score.task for record in records for score in record.scores))
    for record in records:
        cell, scheme = record.cell, record.cell.scheme
        start: dict[str, object] = dict.fromkeys(WORDS, "")
        start |= {
            "model": cell.model,
            "method": cell.method,
            "params": params_text(cell),
            "cell": record.id,
        }
        start |= {"status": record.status, "reason": record.reason or ""}
        start |= {"bits_per_weight": record.bits_per_weight.get("total")}
        if scheme:
            start |= {"bits": scheme.bits, "group_size": str(scheme.group_size or "channel")}
        scores = record.scores if record.status == "ok" else ()
        ranked = sorted(
            scores, key=lambda score: (tasks.index(score.task), score.metric, score.filter)
        )
        kept = ("task", "metric", "filter", "value", "stderr", "n")
        rows += [start | {key: getattr(score, key) for key in kept} for score in ranked] or [start]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    floats = dict.fromkeys(("bits_per_weight", "value", "stderr"), "float64")
    return table.astype({**floats, "bits": "Int64", "n": "Int64"})


def failures(records: Sequence[Record]) -> list[tuple[Record, str]]:
    """The cells that have no scores, each with its label and reason in one line."""
    lost = [record for record in ordered(records) if record.status != "ok"]
    return [
        (record, " ".join((record.reason or "no reason was recorded").split())) for record in lost
    ]


def markdown(records: Sequence[Record]) -> str:
    """The wide table, the best values bold, and what failed and why."""
    require(records)
    columns, rows = grid(records)
    arrows = {h.title: h.heading for h in headlines(records)}
    head = [_plain(arrows.get(column, column)) for column in columns]
    rule = ["---" if k <= columns.index("method") else "---:" for k in range(len(columns))]
    body = [[f"**{_plain(e.text)}**" if e.best else _plain(e.text) for e in row] for row in rows]
    parts = [
        "# qbench leaderboard",
        "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *body]),
        CAPTION,
    ]
    if any(h.task.startswith("mini-") for h in headlines(records)):
        parts.insert(1, f"Note: {MINI_NOTICE}.")
    if lost := failures(records):
        items = [
            f"- {_plain(r.cell.model)} {_plain(r.cell.label)} ({r.status}): {_plain(why)}"
            for r, why in lost
        ]
        parts += ["## Cells without scores", "\n".join(items)]
    return "\n\n".join(parts) + "\n"


def _plain(text: str) -> str:
    """Text from outside as Markdown that means itself."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")


def screen(records: Sequence[Record], console: Console) -> None:
    """A table per model in at most 100 columns, and below it the cells without scores."""
    require(records)
    for model in dict.fromkeys(record.cell.model for record in ordered(records)):
        mine = [record for record in ordered(records) if record.cell.model == model]
        chosen, width, gap = [h for h in headlines(mine) if h.short], min(100, console.width), 1
        while chosen and _width(_screen_table(mine, chosen, gap), console) > width:
            chosen, gap = (chosen, 0) if gap else (chosen[:-1], 0)
        if any(record.status == "ok" for record in mine):
            console.print(_screen_table(mine, chosen, gap), width=width)
        for record, why in failures(mine):
            console.print(Text(f"{record.status}  {record.cell.label}  {why}"), width=width)
    if any(h.task.startswith("mini-") for h in headlines(records)):
        console.print(Text(f"Note: {MINI_NOTICE}."))


def _width(table: Table, console: Console) -> int:
    return Measurement.get(console, console.options.update_width(1000), table).maximum


def _screen_table(records: Sequence[Record], chosen: Sequence[Headline], gap: int) -> Table:
    table = Table(
        title=Text(records[0].cell.model), box=SIMPLE_HEAD, padding=(0, gap, 0, 0), show_edge=False
    )
    table.title_justify = "left"
    table.add_column("method", overflow="fold", max_width=16, vertical="bottom")
    for name in ("bits", "bits /\nweight", *(h.short or "" for h in chosen)):
        table.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    called = names(records)
    for record in records:
        if record.status == "ok":
            scores = [h.of(record) for h in chosen]
            values = [
                number(s.value, s.stderr, s.metric, digits=1, gap="") if s else "" for s in scores
            ]
            table.add_row(
                *map(
                    Text,
                    (called[record.id], *[e.text for e in _identity(record, "")[1::2]], *values),
                )
            )
    return table
