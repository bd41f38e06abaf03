"""Cells on real engines: a Ray cluster of two nodes that loses one, and submitit's executors."""

from __future__ import annotations

import signal
import tempfile
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

from qbench.executors.on_ray import run_on_ray
from qbench.executors.on_slurm import parameters, run_on_slurm
from qbench.experiment import runner
from qbench.experiment.journal import read_events
from qbench.experiment.status import read_status
from qbench.experiment.store import Store
from tiny_plans import Silent, tiny_plan

pytestmark = [
    pytest.mark.slow,
    pytest.mark.cluster,
    # The engines leave files and sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Watching(Silent):
    """The same; `at_begin` is called with the number of cells begun."""

    def __init__(self, at_begin=lambda count: None):
        super().__init__()
        self.begun = 0
        self._at_begin = at_begin

    def begin(self, cell, position, cells):
        self.begun += 1
        self.told.append(("begin", cell.id))
        self._at_begin(self.begun)


@pytest.fixture(scope="module")
def plan(tiny_folder):
    tasks = ("wikitext", "divergence")
    settings = {name: {"limit": (2,), "length": (64,)} for name in tasks}
    settings["calibration"] = {"samples": (4,), "length": (32,)}
    return tiny_plan(tiny_folder, "none", "rtn", "gptq", tasks=tasks, set=settings)


@pytest.fixture(scope="module")
def undisturbed(plan, tmp_path_factory):
    """The table of a run on this machine alone."""
    store = Store(tmp_path_factory.mktemp("undisturbed"))
    return table(runner.run(plan, store, Watching()))


def table(records):
    rows = {}
    for record in records:
        scores = {(s.task, s.metric, s.filter): (s.value, s.stderr, s.n) for s in record.scores}
        rows[record.id] = (record.status, record.reason, record.bits_per_weight, scores)
    return rows


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster of two nodes with a core each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    # The names of Ray's sockets may have 107 characters, so pytest's folders are too deep.
    with tempfile.TemporaryDirectory(prefix="q", ignore_cleanup_errors=True) as short:
        monkeypatch.setenv("TMPDIR", short)
        monkeypatch.setattr(tempfile, "tempdir", None)
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster
        cluster.shutdown()


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "collected"])
def test_a_ray_cluster_that_loses_a_node_ends_with_the_same_table(
    plan, undisturbed, cluster, tmp_path, shared
):
    def lose(begun):
        if begun == 2:  # each of the two nodes has one cell
            cluster.remove_node(cluster.second, allow_graceful=False)

    plan = replace(plan, grid=plan.grid.model_copy(update={"workers": 2}))
    store = Store(tmp_path / "run")
    view = Watching(lose)
    records = run_on_ray(plan, store, view, cluster.address, shared)
    assert table(records) == undisturbed
    begun = [cell for kind, cell, *_ in view.told if kind == "begin"]
    assert len(begun) > len(plan.cells), "no cell was at work on the node that was lost"
    for kind in ("progress", "scored", "finish"):
        assert any(said[0] == kind for said in view.told), kind
    assert read_status(store.folder).counts == {"ok": len(plan.cells)}
    for record in records:
        assert (store.folder / record.scores[0].samples).is_file()
        assert list(read_events(store.events(record.id)))[-1]["event"] == "finish"
        if record.cell.scheme is not None:
            assert store.artifact(record.cell).is_dir() == shared
    again = Watching()
    assert table(run_on_ray(plan, store, again, cluster.address, shared)) == undisturbed
    assert not again.told, "cells with a record are not sent"


@pytest.mark.parametrize("kind", ["local", "debug"])
def test_submitit_settles_an_array_of_cells(plan, undisturbed, tmp_path, kind):
    pytest.importorskip("submitit")
    store = Store(tmp_path / "run")
    view = Watching()
    if kind == "local":
        view = Watching(lambda begun: disturb(store, view.told[-1][1], begun))
    records = run_on_slurm(plan, store, view, kind)
    assert table(records) == undisturbed
    begun = [cell for kind, cell, *_ in view.told if kind == "begin"]
    assert set(begun) == set(undisturbed)
    if kind == "local":
        assert begun[len(plan.cells) :] == begun[:2], "what was lost is submitted again"
    submitted = len(list((store.folder / "slurm").glob("*_submitted.pkl")))
    again = Watching()
    assert table(run_on_slurm(plan, store, again, kind)) == undisturbed and not again.told
    assert len(list((store.folder / "slurm").glob("*_submitted.pkl"))) == submitted


def disturb(store, cell, begun):
    """Send the processes of the first three cells what a job gets from Slurm.

    One is killed, as where a machine fails, one told to end, and one warned that time runs out.
    """
    sent = {1: signal.SIGKILL, 2: signal.SIGTERM, 3: signal.SIGUSR2}
    if begun in sent:
        runner = psutil.Process(next(read_events(store.events(cell)))["pid"])
        for process in [runner, *runner.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(sent[begun])


def test_slurm_gets_an_array_that_it_may_not_requeue(plan, tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit")
    script = tmp_path / "script.sh"
    for name, text in (("srun", ""), ("sbatch", f'cp "$1" {script}; echo Submitted batch job 12')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    executor = submitit.AutoExecutor(folder=tmp_path / "jobs", cluster="slurm")
    cells = list(plan.cells)
    executor.update_parameters(**parameters(plan, cells, "slurm", {"partition": "gpu"}))
    jobs = executor.map_array(abs, range(len(cells)))
    assert [job.job_id for job in jobs] == [f"12_{index}" for index in range(len(cells))]
    asked = script.read_text()
    for line in ("--array=0-4%1", "--no-requeue", "--partition=gpu", "--cpus-per-task=1"):
        assert f"#SBATCH {line}\n" in asked
