"""The ranking, the pages of cells and methods, and the tables for programs and papers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qbench.comparison.pairs import Pairs
from qbench.records import Decoding, Latency, Product, Record
from qbench.reports import cell_pages, json_lines, latex, method_pages
from qbench.reports.changed_items import changed_items
from qbench.reports.long_table import long_table
from qbench.reports.page import html
from qbench.reports.ranking import filters, ranking
from synthetic_records import failed, record, stored

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
TRAINED = {
    "block 0": {"initial": 0.4, "final": 0.1, "losses": [0.4, 0.2, 0.1]},
    "block 1": {"initial": 0.5, "final": 0.5, "losses": [0.5]},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Record], Path]:
    """A run's records and its folder, with the items of every score."""
    folder = tmp_path_factory.mktemp("run")
    cells = [
        record("none", None),
        record("rtn", 3, 0.5),
        record("gptq", 3, 0.2, latency=TIMED, log=TRAINED, bytes_on_disk=5_000_000),
        record("gptq", 4, 0.05),
    ]
    return [*stored(cells, folder), failed("awq", 3)], folder


def test_cells_are_ranked_within_their_bits_by_pairs(run: tuple[list[Record], Path]) -> None:
    records, folder = run
    columns, rows = ranking(records, folder)
    assert [column.heading for column in columns][:2] == ["#", "method"]
    shown = [(row.entries[0].text, row.entries[1].text, row.entries[2].text) for row in rows]
    assert shown[0] == ("", "unquantized", "")
    assert [(rank, name.split()[0], bits) for rank, name, bits in shown[1:]] == [
        ("1", "gptq", "3"),
        ("2", "rtn", "3"),
        ("", "awq", "3"),
        ("1", "gptq", "4"),
    ]
    assert rows[1].entries[1].href == f"cells/{records[2].id}.html"


def test_without_items_nothing_is_ranked(run: tuple[list[Record], Path]) -> None:
    records, _ = run
    _, rows = ranking([cell.model_copy(update={"scores": cell.scores}) for cell in records], None)
    places = {row.entries[0].text for row in rows}
    assert places == {"", "1"}  # no pair says that another is better


def test_filters_offer_what_there_is(run: tuple[list[Record], Path]) -> None:
    records, _ = run
    choices = {choice.key: choice.choices for choice in filters(records)}
    assert choices["bits"] == ["3", "4"]
    assert choices["status"] == ["ok", "failed"]
    assert "unquantized" in choices["method"]
    _, rows = ranking(records)
    for choice in filters(records):
        assert {row.filters[choice.place] for row in rows} - {""} == set(choice.choices)
    assert 'name="bits" data-place="1"' in html(records)  # that of the model is left out


def test_the_page_shows_latency_and_a_phone_sees_scores(run: tuple[list[Record], Path]) -> None:
    records, folder = run
    text = html(records, folder)
    assert "tokens/s" in text
    heads = text.split("<thead>")[1].split("</thead>")[0].split("<th ")[1:]
    narrow = [head for head in heads if "extra" not in head]
    assert len(narrow) == 4  # method, bits and the two leading scores
    assert "<main>" in text


def test_a_cell_page_has_scores_changes_latency_losses_and_command(
    run: tuple[list[Record], Path], tmp_path: Path
) -> None:
    records, folder = run
    paths = cell_pages.write(records, folder)
    assert [path.parent.name for path in paths] == ["cells"] * len(records)
    text = (folder / "cells" / f"{records[2].id}.html").read_text(encoding="utf-8")
    for part in ("Items that changed", "right to wrong", "64 x 32", "20.0 tokens per second"):
        assert part in text
    assert "<polyline" in text and ">0.25<" in text and ">1.00<" in text
    assert records[2].command in text
    lost = (folder / "cells" / f"{records[4].id}.html").read_text(encoding="utf-8")
    assert "failed: &lt;script&gt;" in lost


def test_changes_are_those_of_the_same_items(run: tuple[list[Record], Path]) -> None:
    records, folder = run
    pairs = Pairs(records, folder)
    (arc, *_) = changed_items(records, records[1], pairs)
    before = pairs.items(records[0], ("mini-arc_easy", "acc", "none"))
    after = pairs.items(records[1], ("mini-arc_easy", "acc", "none"))
    assert before is not None and after is not None
    lost = int(((before.values == 1) & (after.values == 0)).sum())
    assert arc.summary.startswith(f"{lost} right to wrong")
    assert changed_items(records, records[0], pairs) == []


def test_a_method_page_says_what_the_method_is(run: tuple[list[Record], Path]) -> None:
    records, folder = run
    method_pages.write(records, folder)
    text = (folder / "methods" / "gptq.html").read_text(encoding="utf-8")
    assert "arXiv:2210.17323" in text and "damp" in text
    assert text.count("../cells/") == 2
    unknown = record("mine", 3, 0.1)
    (path,) = method_pages.write([unknown], folder / "other")
    assert "mine" in path.read_text(encoding="utf-8")


def test_json_lines_are_the_rows_of_the_long_table(run: tuple[list[Record], Path]) -> None:
    records, folder = run
    (path,) = json_lines.write(records, folder)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    table = long_table(records, folder)
    assert [line["cell"] for line in lines] == list(table.cell)
    assert lines[0]["value"] == pytest.approx(table.value[0])
    assert lines[-1]["value"] is None or lines[-1]["status"] == "ok"


def test_latex_escapes_and_has_a_row_per_cell(run: tuple[list[Record], Path]) -> None:
    records, folder = run
    text = latex.latex(records, folder)
    assert text.count(r" \\") == len(records) + 1
    assert r"mini-arc\_easy acc \%" in text
    assert r"\textbf{" in text
    assert latex.escaped("a_b & 50 % {x} \\") == r"a\_b \& 50 \% \{x\} \textbackslash{}"
