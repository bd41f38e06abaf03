"""What happens to cells is written down, and told again as a status and as a trace."""

from __future__ import annotations

import json
import math
import os
import time

import pytest

from qbench.errors import StoreError
from qbench.experiment.journal import Journal, PlanFile, read_events, write_plan
from qbench.experiment.status import read_status, seconds_left
from qbench.experiment.store import COMPUTING, RUNNERS, Store
from qbench.experiment.trace import read_attempts, trace_of, write_trace
from qbench.files.claims import claimed, is_claimed
from qbench.records import Latency
from synthetic_records import record
from tiny_plans import tiny_plan

RTN, GPTQ, GREEDY = record("rtn", 3), record("gptq", 3), record("greedy", 3)
FAILED = GREEDY.model_copy(update={"status": "failed", "reason": "no"})
WAITING = record("alternating", 3)
LATENCY = Latency(device="cpu", threads=1, dtype="float32")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "run")


def plan_of(store, *records, seconds=100.0, latency=0.0):
    cells = []
    for each in records:
        facts = {"id": each.id, "model": each.cell.model, "label": each.cell.label}
        cells.append({**facts, "seconds": seconds, "latency": latency})
    body = PlanFile(started=1.0, workers=2, cells=cells)
    (store.folder / "plans").mkdir(exist_ok=True)
    (store.folder / "plans" / "key.json").write_text(body.model_dump_json())


def finish(store, each):
    journal = Journal(store)
    journal.begin(each.cell)
    journal.told(each.cell, {"phase": "quantize", "began": time.time(), "seconds": 0.0})
    store.write_record(each)
    journal.finish(each)


def states(store):
    return {cell.label.split()[0]: cell.state for cell in read_status(store.folder).cells}


def test_events_are_lines_and_half_a_line_is_none(store):
    journal = Journal(store)
    journal.begin(RTN.cell)
    for fraction in (0.1, 0.2, 0.3):
        journal.told(RTN.cell, {"progress": fraction, "text": "block 1/2"})
    score = RTN.scores[0].model_dump(mode="json")
    journal.told(RTN.cell, {"scores": [score]})
    journal.told(RTN.cell, {"note": "made again"})
    journal.told(RTN.cell, {"waiting": "artifact"})
    journal.finish(RTN)
    path = store.events(RTN.id)
    events = list(read_events(path))
    assert [event["event"] for event in events] == ["begin", "progress", "scored", "note", "finish"]
    assert events[1]["fraction"] == 0.1, "the others came too soon after it"
    assert events[2]["scores"][0]["value"] == RTN.scores[0].value
    assert events[0]["label"] == RTN.cell.label and events[-1]["status"] == "ok"
    path.write_bytes(path.read_bytes()[:-5])
    assert len(list(read_events(path))) == 4
    assert not list(read_events(path.with_name("nothing")))


BEGUN = {"time": 1e9, "event": "begin", "model": "m", "label": "l", "host": "h", "pid": 1}
FINISHED = {"time": 2e9, "event": "finish", "status": "ok", "reason": None, "seconds": 3.0}
HALFWAY = {"time": 1e9, "event": "progress", "fraction": 0.5, "text": "block 1/2"}
ODD_LINES = {
    "deep": "[" * 100_000,
    "deeper": '{"time":' * 100_000,
    "no object": '"begin"',
    "no event": "{}",
    "unknown": json.dumps(BEGUN | {"event": "sleep"}),
    "time in words": json.dumps(BEGUN | {"time": "x"}),
    "long ago": json.dumps(BEGUN | {"time": -9e99}),
    "far away": json.dumps(BEGUN | {"time": 9e99}),
    "half a character": json.dumps(BEGUN | {"host": "\ud800"}),
    "without seconds": json.dumps({k: v for k, v in FINISHED.items() if k != "seconds"}),
    "no seconds": json.dumps(FINISHED | {"seconds": None}),
    "endless": json.dumps(FINISHED | {"seconds": math.inf}),
    "no number": json.dumps(HALFWAY | {"fraction": math.nan}),
    "a list": json.dumps(HALFWAY | {"text": [1]}),
    "a phase": json.dumps({"time": 1e9, "event": "phase", "name": "load", "began": None}),
    "scores": json.dumps({"time": 1e9, "event": "scored", "task": "t", "scores": [{}]}),
}


@pytest.mark.parametrize("odd", ODD_LINES.values(), ids=ODD_LINES)
def test_a_line_that_no_run_writes_is_left_out(store, tmp_path, odd):
    plan_of(store, RTN)
    finish(store, RTN)
    path = store.events(RTN.id)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([odd, lines[0], odd, *lines[1:], odd]) + "\n")
    assert len(list(read_events(path))) == len(lines)
    (told,) = read_status(store.folder).cells
    assert told.state == "ok" and 0 <= told.seconds < 100
    write_trace(store, [RTN.cell], tmp_path / "trace.json")
    path.write_text(odd)
    assert read_status(store.folder).counts == {"ok": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"id": "a\0b"},
        {"id": "../../../outside"},
        {"id": "0" * 11 + "\n"},
        {"id": "0" * 13},
        {"seconds": math.nan},
        {"seconds": math.inf},
        {"seconds": -1.0},
        {"latency": 9e99},
    ],
    ids=str,
)
def test_a_plan_that_no_run_writes_is_left_out(store, change):
    plan_of(store, RTN)
    path = store.folder / "plans" / "key.json"
    body = json.loads(path.read_text())
    body["cells"][0] |= change
    path.write_text(json.dumps(body))
    assert read_status(store.folder).cells == ()


def test_what_is_no_file_is_not_waited_for(store):
    plan_of(store, RTN)
    store.events(RTN.id).parent.mkdir()
    store.claim(RUNNERS).parent.mkdir()
    places = [store.events(RTN.id), store.folder / "plans" / "other.json"]
    places += [store.claim(name) for name in (RTN.id, RUNNERS, COMPUTING)]
    for place in places:
        os.mkfifo(place)
    run = read_status(store.folder)
    assert run.counts == {"waiting": 1} and not run.at_work


def test_the_time_left_is_a_number_whatever_was_estimated(store):
    plan_of(store, RTN, GPTQ, seconds=5e-324)
    finish(store, RTN)
    with claimed(store.claim(GPTQ.id)):
        assert math.isfinite(read_status(store.folder).seconds_left)


def test_a_status_tells_what_is_done_at_work_failed_and_waiting(store):
    plan_of(store, RTN, GPTQ, GREEDY, WAITING)
    finish(store, RTN)
    finish(store, FAILED)
    assert states(store) == {
        "rtn": "ok",
        "greedy": "failed",
        "gptq": "waiting",
        "alternating": "waiting",
    }
    assert read_status(store.folder).seconds_left is None
    with claimed(store.claim(GPTQ.id)), claimed(store.claim(GREEDY.id)):
        journal = Journal(store)
        journal.begin(GPTQ.cell)
        journal.told(GPTQ.cell, {"progress": 0.5, "text": "block 1/2 loss 3.25"})
        run = read_status(store.folder)
        [gptq] = [cell for cell in run.cells if cell.id == GPTQ.id]
        assert (gptq.state, gptq.fraction, gptq.text) == ("running", 0.5, "block 1/2 loss 3.25")
        assert run.counts == {"ok": 1, "running": 2, "waiting": 1}, "what failed is tried again"
    later = read_status(store.folder, now=time.time() + 3600)
    assert later.counts == {"ok": 1, "waiting": 2, "failed": 1}, "its runner was killed"
    assert read_status(store.folder).counts["running"] == 1, "it may be where locks are not seen"
    earlier = read_status(store.folder, now=time.time() - 3600)
    assert "running" not in earlier.counts, "its clock was set back after it was killed"
    skewed = read_status(store.folder, now=time.time() - 5)
    assert [cell.seconds for cell in skewed.cells if cell.state == "running"] == [0.0]


def test_a_clock_that_is_set_back_makes_no_negative_times(store, monkeypatch):
    clock = iter([3600.0, 3601.0, *range(10)])
    monkeypatch.setattr("qbench.experiment.journal.time.time", lambda: float(next(clock)))
    journal = Journal(store)
    journal.begin(RTN.cell)
    journal.told(RTN.cell, {"phase": "load", "began": 3600.0, "seconds": -1.0})
    journal.finish(RTN)
    events = list(read_events(store.events(RTN.id)))
    assert events[-1]["time"] < events[0]["time"] and events[-1]["seconds"] >= 0
    spans = [each for each in trace_of(read_attempts(events, "1"))["traceEvents"] if "dur" in each]
    assert [span["dur"] for span in spans] == [0.0, 0.0]


def test_a_claim_is_seen_and_not_taken(store):
    path = store.claim("x")
    assert not is_claimed(path) and not path.exists()
    with claimed(path) as mine:
        assert mine and is_claimed(path)
    assert not is_claimed(path)
    with claimed(path, shared=True):
        assert is_claimed(path, shared=True) and not is_claimed(path)
    assert not is_claimed(path, shared=True)
    with claimed(path) as mine:
        assert mine


def test_the_time_left_goes_by_the_pace_so_far(store):
    plan_of(store, RTN, GPTQ, WAITING)
    finish(store, RTN)
    with claimed(store.claim(GPTQ.id)):
        Journal(store).told(GPTQ.cell, {"progress": 0.5, "text": ""})
        cells = read_status(store.folder).cells
    done, running, waiting = cells
    assert seconds_left((running, waiting)) == pytest.approx(100 + 100)
    running = running.__class__(**running.__dict__ | {"fraction": 0.5})
    slow = done.__class__(**done.__dict__ | {"seconds": 300.0})
    assert seconds_left((slow, running, waiting)) == pytest.approx(3 * 150)
    assert seconds_left((slow, running, running, waiting)) == pytest.approx(3 * 200 / 2)
    assert seconds_left((slow, waiting)) == pytest.approx(3 * 100), "between two cells"


def test_who_plans_or_measures_latencies_is_at_work(store):
    plan_of(store, RTN, GPTQ, latency=20.0)
    finish(store, RTN)
    assert not read_status(store.folder).at_work
    with claimed(store.claim(RUNNERS), shared=True):
        run = read_status(store.folder)
        assert run.at_work and not run.measuring
        assert run.seconds_left == pytest.approx(2 * 20 + run.cells[0].seconds, rel=1e-3)
    finish(store, GPTQ)
    with claimed(store.claim(COMPUTING), shared=True):
        assert not read_status(store.folder).measuring, "which cells share"
    with claimed(store.claim(COMPUTING)):
        run = read_status(store.folder)
        assert run.at_work and run.measuring and run.seconds_left == 40
        store.add_latency(RTN.cell, LATENCY)
        assert read_status(store.folder).seconds_left == 20


def test_records_of_older_runs_have_a_status(store):
    store.write_record(RTN)
    assert read_status(store.folder).counts == {"ok": 1}
    with pytest.raises(StoreError, match="holds no records"):
        read_status(store.folder / "records")


def event(kind, at, **facts):
    return {"event": kind, "time": at, **facts}


def test_a_trace_has_overlapping_cells_in_lanes_of_their_own():
    first = [
        event("begin", 10.0, host="a", model="m", label="rtn 3b", pid=1),
        event("phase", 14.0, name="quantize", began=11.0, seconds=2.0),
        event("scored", 15.0, task="text", scores=[{"metric": "ppl", "value": 4.0}]),
        event("finish", 20.0, status="ok", reason=None, seconds=10.0),
        event("progress", 30.0, fraction=0.5, text="latency"),
    ]
    cut_off = [event("begin", 12.0, host="a", model="m", label="gptq 3b", pid=1)]
    again = [*cut_off, event("begin", 21.0, host="b", model="m", label="gptq 3b", pid=2)]
    attempts = read_attempts(first, "1") + read_attempts(again, "2")
    assert len(attempts) == 3 and attempts[0].ended == 20.0
    later = event("begin", 20.0, host="a", model="m", label="awq 3b", pid=1)
    attempts += read_attempts(
        [later, event("finish", 22.0, status="ok", reason=None, seconds=2.0)], "3"
    )
    spans = [each for each in trace_of(attempts)["traceEvents"] if each["ph"] == "X"]
    cells = {each["args"]["cell"]: each for each in spans if each["cat"] == "cell" and each["dur"]}
    quantize = next(each for each in spans if each["name"] == "quantize")
    assert (quantize["ts"], quantize["dur"]) == (11e6, 2e6)
    assert (quantize["pid"], quantize["tid"]) == (cells["1"]["pid"], cells["1"]["tid"])
    assert cells["1"]["args"] == {
        "cell": "1",
        "pid": 1,
        "text ppl": 4.0,
        "status": "ok",
        "reason": None,
    }
    lanes = {(each["name"], each["pid"]): each["tid"] for each in spans}
    assert lanes[("m rtn 3b", 1)] != lanes[("m gptq 3b", 1)], "they overlap"
    assert lanes[("m gptq 3b", 2)] == 1, "on another host"


def test_a_trace_is_a_json_file_of_all_cells(store, tmp_path):
    finish(store, RTN)
    finish(store, FAILED)
    path = tmp_path / "trace.json"
    write_trace(store, [RTN.cell, GREEDY.cell, WAITING.cell], path)
    events = json.loads(path.read_text())["traceEvents"]
    named = {each["name"] for each in events if each["ph"] == "X"}
    assert named == {"tiny rtn 3b g64 clip=search period=4", "tiny greedy 3b g64", "quantize"}


def test_the_plan_of_a_run_and_its_events_tell_calibrations_apart(tiny_folder, store):
    sizes = {"calibration": {"samples": ("2", "4"), "length": ("32",)}}
    plan = tiny_plan(tiny_folder, "gptq", bits=(2,), set=sizes)
    expected = ["gptq 2b g32 pydoc-calibration:2x32", "gptq 2b g32 pydoc-calibration:4x32"]
    write_plan(store, plan)
    assert sorted(cell.label for cell in read_status(store.folder).cells) == expected
    journal = Journal(store, plan.labels)
    for cell in plan.cells:
        journal.begin(cell)
    events = [next(iter(read_events(store.events(cell.id)))) for cell in plan.cells]
    assert sorted(event["label"] for event in events) == expected


def test_records_without_a_plan_are_told_apart_in_the_status(store):
    sample = GPTQ.cell.calibration.model_copy(update={"samples": 16})
    cell = GPTQ.cell.model_copy(update={"calibration": sample})
    for each in (GPTQ, GPTQ.model_copy(update={"cell": cell, "id": cell.id})):
        store.write_record(each)
    labels = sorted(cell.label for cell in read_status(store.folder).cells)
    assert labels == ["gptq 3b g64 cal:16x512", "gptq 3b g64 cal:8x512"]
