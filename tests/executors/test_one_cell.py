"""One cell as another machine settles it, and what the driver makes of it; without an engine."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from qbench.commands.executing import as_executor, require_engine
from qbench.errors import ConfigError, StoreError
from qbench.executors import on_slurm, one_cell
from qbench.executors.driver import Driver
from qbench.executors.on_ray import Mailbox, needs, run_on_ray
from qbench.executors.on_slurm import parameters, run_on_slurm, settle_in_job
from qbench.executors.one_cell import Settled, settle
from qbench.experiment import outcomes, runner
from qbench.experiment.estimate import Estimate
from qbench.experiment.store import RUNNERS, Store
from qbench.files.claims import claimed_in_time
from tiny_plans import Silent, tiny_plan

GB = 10**9
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture(scope="module")
def plan(tiny_folder):
    return tiny_plan(tiny_folder, "none", "rtn", "unisvq")


@pytest.fixture(autouse=True)
def machine(monkeypatch, tmp_path):
    """A machine whose cells have no process, and leave a file of items and an artifact."""

    def isolated(self, function, cell, limit, halvings=0, paged=False):
        self.view.progress(cell, 0.5, "block 1/2")
        self.store.write_samples(cell, "mini-text", [{"nll": 1.0}])
        if cell.scheme is not None:
            self.store.artifact(cell).mkdir(parents=True, exist_ok=True)
        return {"facts": {"bits_per_weight": {"total": 4.0}}, "tokens": {}}

    monkeypatch.setattr(runner._Run, "_isolated", isolated)
    monkeypatch.setattr(runner, "add_scores", lambda *_: None)
    monkeypatch.setattr(outcomes, "environment", dict)
    monkeypatch.setattr(one_cell, "preload", lambda *modules: None)
    monkeypatch.setattr(one_cell, "_held", one_cell.ExitStack())
    monkeypatch.setattr(one_cell, "_held_folders", set())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    one_cell._held.close()


@pytest.mark.parametrize("shared", [True, False])
def test_a_cell_is_settled_here_or_its_files_are_sent(plan, tmp_path, shared):
    store, view, events = Store(tmp_path / "run"), Silent(), []
    with store.at_work(), closing(Driver(plan, store, view, shared)) as driver:
        cells = driver.missing()
        assert {cell.method for cell in cells} == {"none", "rtn", "unisvq"}
        for cell in cells:
            settled = settle(driver.request(cell), events.append)
            assert settled.error is None and bool(settled.files) != shared
            assert store.artifact(cell).is_dir() == (shared and cell.scheme is not None)
            if not shared:
                assert list(settled.files)[-1] == f"records/{cell.id}.json"
                assert store.record(cell) is None, "it was written elsewhere"
            driver.replay(events)
            driver.take(cell, settled)
            events.clear()
        records = driver.records()
        assert not driver.missing()
    statuses = [record.status for record in records]
    assert statuses.count("ok") == len(cells) and statuses.count("skipped") == 1
    for record in records:
        if record.status == "ok":
            assert (store.folder / "samples" / record.id / "mini-text.jsonl").is_file()
    assert [said[0] for said in view.told if said[1:2] == (cells[0],)] == ["begin", "progress"]
    assert not list((store.folder / "executors").iterdir()), "the mark is gone"
    own = list((tmp_path / "elsewhere").glob("qbench-*/artifacts/*"))
    assert not own, "artifacts are large, and stay nowhere"


def test_a_machine_that_would_compute_something_else_says_so(plan, tmp_path):
    store = Store(tmp_path / "run")
    with store.at_work(), closing(Driver(plan, store, Silent())) as driver:
        cell = driver.missing()[0]
        settled = settle(replace(driver.request(cell), cell="0" * 12))
        assert "has no cell 000000000000 in its plan" in settled.error and not settled.ends
        driver.take(cell, settled)
        record = store.record(cell)
        assert record.status == "failed" and "make them equal" in record.reason
        assert cell in driver.missing(), "the same command tries it again"


def test_a_machine_keeps_its_own_folder_until_its_process_ends(plan, tmp_path):
    store, place = Store(tmp_path / "run"), tmp_path / "elsewhere"
    stale, used, other = (
        place / f"qbench-{os.getuid()}-{name}" for name in (32 * "a", 32 * "b", "process")
    )
    for folder in (stale / "records", used / "records", other):
        folder.mkdir(parents=True)
    with (
        store.at_work(),
        closing(Driver(plan, store, Silent(), shared=False)) as driver,
        claimed_in_time(Store(used).claim(RUNNERS), shared=True),
    ):
        request = driver.request(driver.missing()[0])
        assert settle(request).error is None
        own = place / f"qbench-{os.getuid()}-{request.mark}"
        assert set(place.iterdir()) == {own, used, other}, "what a killed process left is gone"
        with claimed_in_time(Store(own).claim(RUNNERS), shared=True):
            one_cell._held.close()
            assert own.is_dir(), "another process works there"
        one_cell._held_folders.clear()
        assert settle(request).error is None
        one_cell._held.close()
        assert set(place.iterdir()) == {used, other}


def test_what_cannot_be_written_ends_the_run(plan, tmp_path, monkeypatch):
    def refuse(self, record):
        raise StoreError("the disk is full")

    store = Store(tmp_path / "run")
    with store.at_work(), closing(Driver(plan, store, Silent())) as driver:
        cell = driver.missing()[0]
        monkeypatch.setattr(Store, "write_record", refuse)
        settled = settle(driver.request(cell))
        assert settled.ends
        with pytest.raises(StoreError, match="the disk is full"):
            driver.take(cell, settled)


def test_files_of_a_machine_stay_in_the_folder_of_the_run(plan, tmp_path):
    store = Store(tmp_path / "run")
    with store.at_work(), closing(Driver(plan, store, Silent())) as driver:
        cell = driver.missing()[0]
        with pytest.raises(StoreError, match="which is not of a run"):
            driver.take(cell, Settled(files={"../outside": b"1"}))
        driver.take(cell, Settled())
        assert store.record(cell).reason == "it ended without a record"
    assert not (tmp_path / "outside").exists()


def test_what_a_cell_asks_of_ray(plan):
    cell = plan.cells[0]
    plan = replace(plan, threads=2, estimates={cell.id: Estimate(0.0, {}, 5 * GB)})
    nodes = [{"CPU": 8.0, "memory": 4.0 * GB}, {"CPU": 8.0, "memory": 9.0 * GB, "GPU": 1.0}]
    assert needs(plan, cell, nodes) == {"num_cpus": 2, "memory": 5 * GB}
    assert needs(plan, cell, nodes[:1])["memory"] == 4 * GB, "the largest for itself"
    on_gpu = replace(plan, device="cuda")
    assert needs(on_gpu, cell, nodes)["num_gpus"] == 1
    with pytest.raises(ConfigError, match="the Ray cluster has none"):
        needs(on_gpu, cell, nodes[:1])
    many = replace(plan, threads=48)
    assert needs(many, cell, nodes)["num_cpus"] == 8, "Ray waits for ever for more than there is"
    small = [{"CPU": 32.0, "memory": GB}, {"CPU": 4.0, "memory": 9.0 * GB, "GPU": 1.0}]
    assert needs(many, cell, small)["num_cpus"] == 4, "of the machine that has the memory"
    mailbox = Mailbox()
    mailbox.put(("1", "note", "x"))
    assert mailbox.take() == [("1", "note", "x")] and mailbox.take() == []


def test_what_an_array_asks_of_slurm(plan):
    grid = plan.grid.model_copy(update={"workers": 8})
    costs = {cell.id: Estimate(60.0, {}, 5 * GB) for cell in plan.cells}
    plan = replace(plan, threads=2, estimates=costs, device="cuda", grid=grid)
    asked = parameters(plan, list(plan.cells), "slurm", {"partition": "gpu"})
    assert asked["gpus_per_node"] == 1 and asked["cpus_per_task"] == 2 and asked["mem_gb"] == 10
    assert asked["timeout_min"] == (600 + 20 * 60 + 600) / 60
    assert asked["slurm_array_parallelism"] == 8
    assert asked["slurm_additional_parameters"] == {"no_requeue": True, "partition": "gpu"}
    assert "slurm_array_parallelism" not in parameters(plan, list(plan.cells), "local", {})


class Lost(RuntimeError):
    """In the place of submitit's error for a job that never ended."""


class Jobs:
    """An executor whose first job is lost `losses` times, and that settles all others at once.

    state: of the job that is lost. refused: the submissions, by their number, that are refused.
    """

    def __init__(self, losses=0, state="NODE_FAIL", refused=()):
        self.losses = losses
        self.state = state
        self.refused = refused
        self.calls = 0
        self.submitted = []
        self.cancelled = []
        self.at_work = self.most = 0

    def map_array(self, function, requests):
        self.calls += 1
        if self.calls in self.refused:
            raise Lost("sbatch: error: invalid partition specified: gpux\nsbatch: error: Invalid")
        jobs = [Job(self, function, request) for request in requests]
        self.submitted += [request.cell for request in requests]
        self.at_work += len(jobs)
        self.most = max(self.most, self.at_work)
        return jobs


class Job:
    def __init__(self, jobs, function, request):
        self.job_id = "7"
        self._jobs, self._function, self._request = jobs, function, request

    @property
    def _is_lost(self):
        return self._request.cell == self._jobs.submitted[0] and self._jobs.losses > 0

    @property
    def state(self):
        self._end(self._is_lost)
        return self._jobs.state

    def done(self):
        return not (self._is_lost and self._jobs.state == "PREEMPTED")

    def result(self):
        if self._is_lost:
            self._end(True)
            raise Lost("the node failed")
        self._end(False)
        return self._function(self._request)

    def stderr(self):
        return "starting\nsrun: error: Node failure\n"

    def cancel(self, check):
        self._jobs.cancelled.append(self._request.cell)

    def _end(self, lost):
        self._jobs.at_work -= 1
        self._jobs.losses -= lost


@pytest.fixture
def submitit(monkeypatch):
    """A stand-in of submitit's errors."""

    class Failed(Lost):
        pass

    submitit = type(sys)("submitit")
    submitit.core = type("core", (), {})
    submitit.core.utils = type("utils", (), {"UncompletedJobError": Lost, "FailedJobError": Failed})
    monkeypatch.setitem(sys.modules, "submitit", submitit)
    monkeypatch.setattr(on_slurm, "POLL", 0.01)


@pytest.mark.parametrize("state", ["NODE_FAIL", "PREEMPTED"])
@pytest.mark.parametrize("losses", [2, 3])
def test_a_job_that_is_lost_is_submitted_again_twice(plan, tmp_path, submitit, losses, state):
    store, jobs = Store(tmp_path / "run"), Jobs(losses, state)
    with store.at_work(), closing(Driver(plan, store, Silent())) as driver:
        cells = driver.missing()
        on_slurm._Array(jobs, driver, 1).settle(cells, queued=len(cells))
        records = {record.id: record for record in driver.records()}
    first = records[cells[0].id]
    assert len(jobs.submitted) == len(cells) + 2
    assert all(records[cell.id].status == "ok" for cell in cells[1:])
    assert first.status == ("ok" if losses == 2 else "failed")
    if losses == 3:
        said = f"3 times without a result, the last one (7) in the state {state}; it last said: "
        assert f"{said}srun: error: Node failure" in first.reason


@pytest.mark.parametrize("at_once", [1, 2])
def test_no_more_jobs_are_at_work_than_asked_for(plan, tmp_path, submitit, at_once):
    store, jobs = Store(tmp_path / "run"), Jobs()
    with store.at_work(), closing(Driver(plan, store, Silent())) as driver:
        cells = driver.missing()
        on_slurm._Array(jobs, driver, at_once).settle(cells)
        assert {record.status for record in driver.records()} == {"ok", "skipped"}
    assert jobs.submitted == [cell.id for cell in cells] and jobs.most == at_once


def test_jobs_that_sbatch_refuses(plan, tmp_path, submitit):
    store = Store(tmp_path / "run")
    with store.at_work(), closing(Driver(plan, store, Silent())) as driver:
        cells = driver.missing()
        said = "cannot be submitted: sbatch: error: invalid partition specified: gpux sbatch: error"
        with pytest.raises(ConfigError, match=said):
            on_slurm._Array(Jobs(refused=[1]), driver, 1).settle(cells, queued=len(cells))
        assert not store.read_records()[0][1:], "only what is skipped has a record"
        others = Jobs(1, refused=[2])
        on_slurm._Array(others, driver, 2).settle(cells, queued=1)
        records = {record.id: record for record in driver.records()}
    assert not others.cancelled
    assert said in records[cells[1].id].reason


def test_a_job_dies_of_an_order_to_end_and_of_no_warning(monkeypatch):
    seen = []
    monkeypatch.setattr(on_slurm, "settle", lambda _: seen.extend(map(signal.getsignal, SIGNALS)))
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    settle_in_job(None)
    assert seen == [signal.SIG_DFL, signal.SIG_IGN, signal.SIG_IGN]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("slrum", None, None), "unknown executor 'slrum'. Did you mean 'slurm'"),
        (("local", "head:1", None), "--address head:1 needs --executor ray or slurm"),
        (("ray", None, ["a=b"]), "--slurm a=b needs --executor slurm"),
        (("slurm", None, ["gpu"]), "--slurm 'gpu' is not KEY=VALUE"),
        (("slurm", None, ["a=b", "--a=c"]), "--slurm a is given twice; keep one of them"),
    ],
)
def test_flags_of_executors_that_do_not_fit(arguments, message):
    with pytest.raises(ConfigError, match=message):
        as_executor(*arguments)
    assert as_executor("local", None, None) is None


def test_an_engine_that_is_not_here_is_said_before_a_plan_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(on_slurm, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match="unknown --address 'locla'. Did you mean 'local'"):
        require_engine("slurm", "locla")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="there is no sbatch and no srun here"):
        require_engine("slurm", None)
    (tmp_path / "srun").touch(mode=0o755)
    with pytest.raises(ConfigError, match="there is no sbatch here"):
        require_engine("slurm", "slurm")
    require_engine("slurm", "local")
    require_engine("local", None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match="Ray, which is not installed"):
        require_engine("ray", None)


@pytest.mark.parametrize("package, function", [("ray", run_on_ray), ("submitit", run_on_slurm)])
def test_an_engine_that_is_not_installed_is_said(plan, tmp_path, monkeypatch, package, function):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"run `pip install -e '\.\[\w+\]'` in the"):
        function(plan, Store(tmp_path / "run"), Silent())
    assert not list(Path(tmp_path / "run" / "records").iterdir())
