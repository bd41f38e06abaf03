"""Latency in the tables: columns where it was measured, its reason where it was not."""

from __future__ import annotations

import io

from rich.console import Console

from qbench.contracts import Scheme
from qbench.records import Cell, Decoding, Latency, Product, Record, Score
from qbench.reports.long_table import long_table
from qbench.reports.tables import markdown
from qbench.reports.terminal import screen
from wide_table import wide_table

SCORE = Score(
    task="wikitext", metric="perplexity", value=20.0, stderr=0.5, n=9, higher_is_better=False
)


def product(rows: int, layers: int = 3) -> Product:
    return Product(
        out=64,
        columns=32,
        rows=rows,
        layers=layers,
        kernel="fast",
        seconds=(0.001, 0.0009, 0.002),
        dense=(0.004, 0.003, 0.005),
    )


DECODING = Decoding(
    prompt=64,
    tokens=16,
    packed=(40.0, 39.0, 41.0),
    dense=(20.0, 19.0, 21.0),
    packed_prefill=(300.0, 290.0, 310.0),
    dense_prefill=(600.0, 590.0, 610.0),
    packed_peak_bytes=5_000_000,
    dense_peak_bytes=9_000_000,
)
WHOLE = Latency(
    device="Xeon",
    threads=2,
    dtype="bfloat16",
    products=(product(1), product(1, 2), product(16)),
    decoding=DECODING,
)
LOST = Latency(device="Xeon", threads=2, dtype="bfloat16", reason="no kernel\nserves it")


def record(bits: int | None, latency: Latency | None) -> Record:
    cell = Cell(
        model="tiny",
        revision="main",
        method="rtn" if bits else "none",
        params={},
        source="0" * 12,
        scheme=Scheme(bits, 64) if bits else None,
        calibration=None,
        tasks=(),
        dtype="bfloat16",
        seed=0,
    )
    return Record(
        id=cell.id,
        cell=cell,
        status="ok",
        scores=(SCORE,),
        bits_per_weight={"total": bits or 16.0},
        bytes_on_disk=4_000_000 if bits else None,
        latency=latency,
    )


RECORDS = [record(None, None), record(3, WHOLE), record(4, LOST)]


def test_all_layers_count_as_often_as_the_model_has_them():
    assert WHOLE.milliseconds(1) == (5.0, 20.0) and WHOLE.milliseconds(16) == (3.0, 12.0)
    assert WHOLE.milliseconds(512) is None and WHOLE.rows == (1, 16)
    assert Latency.model_validate_json(WHOLE.model_dump_json()) == WHOLE


def test_the_table_has_columns_for_it_and_says_what_is_missing():
    table = wide_table(RECORDS).set_index("bits")
    titles = ["batch 1 ms", "batch 1 x dense", "batch 16 ms", "tokens/s", "tokens/s x dense"]
    assert list(table.loc["3", titles]) == ["5", "4", "3", "40", "2"]
    assert list(table.loc["3", ["on disk MB", "in memory MB"]]) == ["4", "5"]
    assert set(table.loc["4", titles]) == {""} == set(table.loc["", titles])
    text = markdown(RECORDS)
    assert "rtn 4b g64: no kernel serves it" in text and "Xeon, 2 threads, bfloat16" in text
    assert "batch 1" not in markdown([record(3, None)])


def test_the_long_table_has_a_row_for_every_figure():
    table = long_table(RECORDS)
    mine = table[(table.task == "latency") & (table.bits == 3)].set_index("metric").value
    assert mine["batch_1_ms"] == 5.0 and mine["batch_16_speedup"] == 4.0
    assert mine["decode_speedup"] == 2.0 and mine["prefill_speedup"] == 0.5
    assert mine["peak_bytes"] == 5e6 and mine["bytes_on_disk"] == 4e6


def test_the_screen_shows_the_rate():
    console = Console(file=io.StringIO(), width=100)
    screen(RECORDS, console)
    lines = console.file.getvalue().splitlines()
    assert any("rtn" in line and line.rstrip().endswith("40 \u00d72.00") for line in lines)
    assert max(map(len, lines)) <= 100
