"""Several runners on one folder: each cell is worked on once, and all end with the same records."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

from qbench.errors import StoreError
from qbench.experiment import outcomes, runner
from qbench.experiment.estimate import Estimate
from qbench.experiment.grid import Grid
from qbench.experiment.plan import make_plan, working_order
from qbench.experiment.store import COMPUTING, Store
from qbench.files.claims import claimed
from tiny_plans import Silent, tiny_plan


@pytest.fixture(scope="module")
def plan(tiny_folder):
    return tiny_plan(tiny_folder, "none", "rtn", "greedy")


@pytest.fixture
def worked_on(monkeypatch, plan):
    """The cells whose process was started, in order; greedy fails, and the others take a moment."""
    cells = []

    def isolated(self, function, cell, limit, halvings=0, paged=False):
        cells.append(cell.id)
        time.sleep(0.1)
        if cell.method == "greedy":
            return {"reason": "no", "facts": {}, "tokens": {}}
        return {"facts": {"bits_per_weight": {"total": 4.0}}, "tokens": {}}

    monkeypatch.setattr(runner._Run, "_isolated", isolated)
    monkeypatch.setattr(runner, "add_scores", lambda *_: None)
    monkeypatch.setattr(outcomes, "environment", dict)
    monkeypatch.setattr(runner, "POLL", 0.01)
    return cells


def statuses(records):
    return [(record.id, record.status, record.reason) for record in records]


def test_cells_that_are_soon_quantized_come_first_and_then_the_longest(plan):
    seconds = [30.0, 5.0, 40.0, 100.0, 20.0]
    costs = zip(plan.cells, seconds, strict=True)
    priced = replace(
        plan, estimates={cell.id: Estimate(cost, {"task": 90.0}, 0) for cell, cost in costs}
    )
    order = [plan.cells.index(cell) for cell in working_order(replace(priced, jobs=2))]
    assert order == [1, 4, 3, 2, 0]
    alone = [plan.cells.index(cell) for cell in working_order(replace(priced, jobs=1))]
    assert alone == [1, 4, 0, 2, 3], "the cheapest first, as nothing has to end together"


@pytest.mark.parametrize("jobs", [1, 3])
def test_one_runner_works_on_every_cell_once(plan, worked_on, tmp_path, jobs):
    view = Silent()
    records = runner.run(replace(plan, jobs=jobs), Store(tmp_path), view)
    ids = [cell.id for cell in plan.cells]
    assert sorted(worked_on) == sorted(ids) and [record.id for record in records] == ids
    assert sorted(said[0] for said in view.told if said[0] != "waiting") == (
        ["begin"] * len(ids) + ["finish"] * len(ids)
    )


def test_an_error_of_one_worker_ends_all(plan, worked_on, tmp_path, monkeypatch):
    def unwritable(self, record):
        raise StoreError("the disk is full")

    monkeypatch.setattr(Store, "write_record", unwritable)
    with pytest.raises(StoreError, match="the disk is full"):
        runner.run(replace(plan, jobs=2), Store(tmp_path), Silent())
    assert len(worked_on) <= 4, "no cell is begun after the error"


def test_a_run_that_waits_for_a_latency_says_so_and_can_be_ended(plan, worked_on, tmp_path):
    """Both of its workers wait; one of them ends the run, as Ctrl-C does in the main thread."""

    class Ended(Silent):
        def waiting(self, cells):
            self.told.append(("waiting", cells))
            raise StoreError("the disk is full")

    def start():
        with pytest.raises(StoreError, match="the disk is full"):
            runner.run(replace(plan, jobs=2), Store(tmp_path), view)
        ended.set()

    view, ended = Ended(), threading.Event()
    with claimed(Store(tmp_path).claim(COMPUTING)) as mine:
        assert mine
        running = threading.Thread(target=start)
        running.start()
        in_time = ended.wait(20)
    running.join()
    assert in_time and view.told[0] == ("waiting", 1) and worked_on == []


def test_two_runners_share_the_cells_and_see_the_same(plan, worked_on, tmp_path):
    found = {}

    def start(name):
        found[name] = runner.run(plan, Store(tmp_path), Silent())

    threads = [threading.Thread(target=start, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ids = [cell.id for cell in plan.cells]
    assert sorted(worked_on) == sorted(ids), "a failure of the other runner is not tried again"
    assert statuses(found["a"]) == statuses(found["b"])
    assert {record.status for record in found["a"]} == {"ok", "failed"}
    assert [path.name for path in (tmp_path / "claims").iterdir()] == ["runners"]


def test_what_failed_in_an_earlier_run_is_tried_again(plan, worked_on, tmp_path):
    runner.run(plan, Store(tmp_path), Silent())
    first = len(worked_on)
    runner.run(plan, Store(tmp_path), Silent())
    again = worked_on[first:]
    assert [cell.method for cell in plan.cells if cell.id in again] == ["greedy", "greedy"]


def test_a_cell_that_another_works_on_is_left_to_it_and_waited_for(plan, worked_on, tmp_path):
    store = Store(tmp_path)
    last = plan.cells[-1]
    view = Silent()
    with ExitStack() as held:
        assert held.enter_context(claimed(store.claim(last.id)))
        running = threading.Thread(target=runner.run, args=(plan, Store(tmp_path), view))
        running.start()
        while ("waiting", 1) not in view.told:
            assert running.is_alive()
            time.sleep(0.01)
        assert last.id not in worked_on and len(worked_on) == len(plan.cells) - 1
    running.join()
    assert worked_on[-1] == last.id, "its runner died without a record"


def test_a_record_that_is_ok_stays(plan, worked_on, tmp_path):
    store = Store(tmp_path)
    first = runner.run(plan, store, Silent())[0]
    store.write_record(first.model_copy(update={"status": "failed", "reason": "later"}))
    assert store.record(plan.cells[0]) == first


def test_the_last_runner_removes_what_cells_share(tmp_path):
    store = Store(tmp_path)
    shared = tmp_path / "reference" / "x.npy"
    shared.parent.mkdir()
    shared.write_bytes(b"x")
    with store.at_work():
        with Store(tmp_path).at_work():
            pass
        assert shared.exists(), "the other runner is still at work"
    assert not shared.exists()
    shared.parent.mkdir()
    shared.write_bytes(b"x")
    with pytest.raises(KeyboardInterrupt), store.at_work():
        raise KeyboardInterrupt
    assert shared.exists(), "the next run goes on with it"


def test_methods_are_skipped_where_they_do_not_support_the_bits(tiny_folder, worked_on, tmp_path):
    grid = Grid(
        model=(str(tiny_folder),),
        methods=("none", "rtn", "unisvq"),
        bits=(3, 4),
        group_size=32,
        tasks=("wikitext",),
        data="mini",
        set={"wikitext": {"length": ("64",)}},
        latency=False,
        jobs=1,
    )
    plan = make_plan(grid)
    records = runner.run(plan, Store(tmp_path), Silent())
    by_label = {record.cell.label: record for record in records}
    skipped = by_label["unisvq 4b g32 epochs=1"]
    assert skipped.status == "skipped" and skipped.id not in worked_on
    assert skipped.reason == "method 'unisvq' supports 2 to 3 bits, not bits=4"
    assert {r.status for label, r in by_label.items() if label != "unisvq 4b g32 epochs=1"} == {
        "ok"
    }
