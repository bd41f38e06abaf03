"""Tables on consoles of any width: no cell loses a digit or a letter."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len

from compared_cells import cell, side
from qbench.commands import compare as command
from qbench.commands.listing import listing
from qbench.commands.model_files import _show_items
from qbench.commands.options import out
from qbench.commands.status import shown
from qbench.commands.tables import show_table
from qbench.comparison.verdicts import Verdict, compare
from qbench.comparison.written import fields
from qbench.experiment.status import CellStatus, RunStatus
from qbench.inspection.report import Inspection, Item

LONG = "uniquanf 3b g64 epochs=8 holdout=0.2 -> my_variant 3b g64 epochs=8 holdout=0.2"
WIDTHS = [(20, True), (40, True), (80, True), (100, True), (200, True), (80, False), (300, False)]


@pytest.fixture(params=WIDTHS, ids=lambda value: f"{value[0]}-{'tty' if value[1] else 'log'}")
def screen(request, monkeypatch) -> io.StringIO:
    """What the commands print on a terminal or into a log of some width."""
    stream = io.StringIO()
    width, is_terminal = request.param
    monkeypatch.setattr(out, "_file", stream)
    monkeypatch.setattr(out, "_width", width)
    monkeypatch.setattr(out, "_force_terminal", is_terminal)
    return stream


@pytest.fixture(scope="module")
def verdict(tmp_path_factory: pytest.TempPathFactory) -> Verdict:
    folder = tmp_path_factory.mktemp("sides")
    base = side(folder / "base", cell())
    return compare(base, side(folder / "candidate", cell(damage=0.4, source="1" * 12)))


@pytest.mark.parametrize("label", ["gptq 3b g64", LONG, LONG * 4])
def test_a_verdict_is_whole(verdict: Verdict, screen: io.StringIO, label: str) -> None:
    (mine,) = verdict.cells
    numbers = [(21.58, 22.46), (0.3736, 119_700.0), (1.565, 1.591), (123.4, 5e-7), (0.5, 0.25)]
    findings = []
    for finding, (before, after) in zip(mine.findings, numbers, strict=False):
        findings.append(replace(finding, base=before, candidate=after, needed="1,389 items"))
    assert findings
    mine = replace(mine, label=label, findings=tuple(findings))
    command._show(replace(verdict, cells=(mine, replace(mine, label=f"{label} again"))))
    text = screen.getvalue()
    lines = text.splitlines()
    assert label in lines and f"{label} again" in lines
    for finding in findings:
        assert all(field in text for field in fields(mine, finding))
        assert f"needs    {label}  {finding.endpoint.name}: 1,389 items" in lines


def test_a_narrow_terminal_has_the_cells_of_a_row_below_each_other(screen: io.StringIO) -> None:
    show_table(("name", "value"), [["x" * 15, "1" * 15], "across", ["y", ""]], right=("value",))
    lines = screen.getvalue().splitlines()
    if out.is_terminal and out.width == 20:
        assert lines == ["x" * 15, f"  value  {'1' * 15}", "across", "y"]
    else:
        assert lines[1:] == [f"{'x' * 15}  {'1' * 15}", "across", "y"]


def test_columns_stand_below_each_other_in_any_script(screen: io.StringIO) -> None:
    show_table(("a", "b"), [["模型", "1"], ["m", "2"]])
    places = [cell_len(line[:-1]) for line in screen.getvalue().splitlines()]
    assert places == [6, 6, 6]


@pytest.mark.parametrize("what", ["methods", "tasks", "presets", "sweeps", "kernels"])
def test_what_there_is_is_whole(screen: io.StringIO, what: str) -> None:
    columns, rows = listing(what)
    show_table(columns, rows, sentences=columns[1:])
    text = screen.getvalue()
    letters = "".join(text.split())
    for row in rows:
        assert row[0] in text, "what one has to type is on one line"
        for entry in row:
            for word in entry.split():
                assert word in letters if len(word) <= 20 else set(word) <= set(letters)
    if out.is_terminal and text.startswith(columns[0]):  # with narrower columns, and not stacked
        assert max(map(cell_len, text.splitlines())) <= out.width


def test_the_cells_at_work_are_whole(screen: io.StringIO) -> None:
    at_work = CellStatus(
        id="1", model="some/" + "m" * 90, label=LONG, estimated=60.0, state="running",
        fraction=0.25, text="block 1/4 loss 0.5123456", seconds=12.4, host="node7.cluster.example",
    )  # fmt: skip
    out.print(shown(RunStatus(Path("run"), (at_work,), 600.0)), soft_wrap=True)
    text = screen.getvalue()
    told = (at_work.model, LONG, "25%", at_work.text, "12 s", at_work.host)
    assert all(word in text for word in told)


def test_the_bits_of_a_model_are_whole(screen: io.StringIO) -> None:
    item = Item("codes_of_a_name_that_is_long", 12_345_678_901, 0.987, 123_456)
    facts = Inspection(
        "model",
        "qbench",
        "1",
        "gptq",
        {},
        3.0,
        3.0,
        1,
        1,
        {item.name: 3.1234},
        1,
        1,
        3.0,
        (item,),
        (),
        (),
    )
    _show_items(facts)
    text = screen.getvalue()
    told = ("codes of a name that is long", "123456", "12,345,678,901", "98.7%", "3.1234")
    assert all(word in text for word in told)
