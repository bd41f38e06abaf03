"""`qbench status` beside a run, and what a run leaves for it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys

import pytest
from rich.console import Console

from qbench.commands.progress import LiveView
from qbench.commands.status import shown
from qbench.errors import ConfigError
from qbench.experiment.journal import Journal, PlanFile, PlannedCell, read_events
from qbench.experiment.status import CellStatus, RunStatus, read_status
from qbench.experiment.store import Store
from qbench.files.atomic import write_text
from synthetic_records import record
from tiny_runs import empty_picture, run_args


def status_of(**changes):
    return CellStatus(**{"id": "1", "model": "m", "label": "gptq 3b", "estimated": 60.0} | changes)


def printed(thing, **options):
    console = Console(width=150, record=True, file=io.StringIO(), **options)
    console.print(thing)
    return console.export_text()


def test_what_is_shown_of_a_run(tmp_path):
    cells = (
        status_of(state="ok"),
        status_of(
            state="running", fraction=0.25, text="block 1/4 loss 0.5", seconds=12.4, host="node7"
        ),
        status_of(state="waiting"),
        status_of(state="failed", label="awq 3b", reason="out of\nmemory \x1b[31m"),
    )
    text = printed(shown(RunStatus(tmp_path, cells, 600.0, ("a record is damaged",))))
    assert "4 cells: 1 ok, 1 running, 1 waiting, 1 failed; about 10 min left" in text
    row = next(line for line in text.splitlines() if line.startswith("running"))
    assert "25%  block 1/4 loss 0.5  12 s  node7" in row
    assert "failed  m  awq 3b  out of memory" in text and "\x1b" not in text
    assert "warning: a record is damaged" in text
    text = printed(shown(RunStatus(tmp_path, cells[:1], 60.0, at_work=True, measuring=True)))
    assert "1 ok; latencies are measured, about 1 min left" in text
    text = printed(shown(RunStatus(tmp_path, cells[2:3], None)))
    assert "1 waiting; nobody is at work; the command of the run goes on from here" in text


def test_watching_follows_the_runners(command, tmp_path, monkeypatch):
    cells = (status_of(state="ok"),)
    looks = iter([True, True, False, True, False, False])
    monkeypatch.setattr("qbench.commands.status.PAUSE", 0.0)
    monkeypatch.setattr(
        "qbench.experiment.status.read_status",
        lambda folder: RunStatus(folder, cells, None, at_work=next(looks)),
    )
    assert command("status", tmp_path, "--watch").code == 0
    assert next(looks, None) is None, "one look more than the first at which nobody is at work"


def test_a_run_that_is_taken_up_again_is_at_work_while_it_plans(command, tmp_path, monkeypatch):
    store = Store(tmp_path / "run")

    def make_plan(*arguments, **options):
        raise ConfigError(f"at work: {read_status(store.folder).at_work}")

    monkeypatch.setattr("qbench.experiment.plan.make_plan", make_plan)
    monkeypatch.setattr("qbench.isolation.preload", lambda *modules: None)
    assert command("run", "--out", store.folder).err == "qbench: at work: True\n"
    assert command("run", "--out", store.folder, "--dry-run").err == "qbench: at work: False\n"


@pytest.mark.parametrize(
    "host, ended, state",
    [("here", True, "waiting"), ("here", False, "running"), ("", True, "running")],
)
def test_a_cell_is_at_work_as_long_as_its_runner_is(tmp_path, host, ended, state, monkeypatch):
    """Of other machines its file of events alone tells, for a minute."""
    store = Store(tmp_path)
    cell = record("rtn", 3).cell
    runner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    monkeypatch.setattr("os.getpid", lambda: runner.pid)
    monkeypatch.setattr("platform.node", lambda: host or "another")
    Journal(store).begin(cell)
    monkeypatch.setattr("platform.node", lambda: "here")
    plan = PlanFile(
        started=0.0, workers=1, cells=(PlannedCell(id=cell.id, model="m", label="l", seconds=1.0),)
    )
    write_text(tmp_path / "plans" / "p.json", plan.model_dump_json())
    if ended:
        runner.kill()
        runner.wait()
    assert [cell.state for cell in read_status(tmp_path).cells] == [state]
    runner.kill()
    runner.communicate()


def test_a_log_has_plain_lines_and_a_terminal_a_bar_for_each_cell():
    cells = [record("rtn", 3), record("gptq", 3)]
    seconds = {each.id: 60.0 for each in cells}
    log = Console(width=150, record=True, file=io.StringIO())
    with LiveView(log, log, seconds) as view:
        for position, each in enumerate(cells, start=1):
            view.begin(each.cell, position, 2)
        view.progress(cells[1].cell, 0.5, "block 1/2 loss 0.25")
        view.finish(cells[0])
    lines = log.export_text().splitlines()
    assert lines[0].endswith("loading, about 2 min left") and "1/2 tiny rtn 3b" in lines[0]
    assert len(lines) == 2 and "1/2 tiny  rtn 3b" in lines[1], "a line in 20 s, and the results"

    terminal = Console(width=150, height=20, force_terminal=True, record=True, file=io.StringIO())
    view = LiveView(terminal, terminal, seconds)
    view.begin(cells[0].cell, 1, 2)
    view.begin(cells[1].cell, 2, 2)
    view.progress(cells[1].cell, 0.5, "block 1/2 loss 0.25")
    text = printed(view._bar)
    assert "nothing done yet, 2 at work" in text
    assert re.search(r"2/2 tiny gptq 3b g64: block 1/2 loss 0.25.* 50%", text)
    view.finish(cells[1])
    text = printed(view._bar)
    assert "1 ok, 1 at work" in text and "gptq" not in text


@pytest.mark.slow
def test_a_run_leaves_events_a_trace_and_a_status(tiny_folder, command, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty_picture)
    out, trace = tmp_path / "out", tmp_path / "trace.json"
    tasks = ["wikitext", "divergence"]
    extra = ["--trace", trace]
    args = run_args(tiny_folder, out, "none,rtn,gptq", "3", extra, tasks)
    code, text, error = command(*args)
    assert code == 0, text + error
    status = json.loads(command("status", out, "--json").out)
    assert status["counts"] == {"ok": 3} and status["seconds_left"] is None
    assert all(cell["seconds"] > 0 and cell["estimated"] > 0 for cell in status["cells"])
    assert "3 cells: 3 ok; nobody is at work" in command("status", out).out
    [gptq] = [cell["id"] for cell in status["cells"] if "gptq" in cell["label"]]
    events = list(read_events(out / "events" / f"{gptq}.jsonl"))
    phases = [event["name"] for event in events if event["event"] == "phase"]
    assert phases == [
        *("load", "calibration tokens", "quantize", "save", "read back"),
        *("prepare mini-divergence", "mini-text", "save", "mini-divergence", "save"),
    ]
    assert any("block" in event.get("text", "") for event in events)
    spans = json.loads(trace.read_text())["traceEvents"]
    assert len([span for span in spans if span.get("cat") == "cell"]) == 3
