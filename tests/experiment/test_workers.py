"""How many cells are at work at a time, each with a device of its own; and what memory allows."""

from __future__ import annotations

import errno
import os
import time
from dataclasses import replace

import pytest
import torch

from isolated_functions import work_without_output
from qbench.errors import MethodError
from qbench.experiment import back_off, outcomes, runner, workers
from qbench.experiment.cell_process import work
from qbench.experiment.store import Store
from qbench.isolation import Isolated
from tiny_plans import Silent, tiny_plan

GB = 10**9


@pytest.fixture(scope="module")
def plan(tiny_folder):
    return tiny_plan(tiny_folder, "none", "rtn", "gptq", "flexround")


@pytest.fixture
def machine(monkeypatch):
    """A machine with eight cores, four GPUs and 100 GB of memory."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(workers, "cores", lambda: 8)
    monkeypatch.setattr(workers, "available_memory", lambda: 100 * GB)


def shared(plan, number=None, **changes):
    """(cells at a time, threads, GPUs) of a plan with these changes."""
    grid = plan.grid.model_copy(update={"workers": number})
    plan = replace(plan, grid=grid, **changes)
    workers.share_machine(plan)
    return plan.jobs, plan.threads, plan.gpus


@pytest.mark.usefixtures("machine")
def test_each_gpu_has_a_cell_and_its_part_of_the_cores(plan, monkeypatch):
    assert shared(plan, device="cuda") == (4, 2, ("0", "1", "2", "3"))
    assert shared(plan, 2, device="cuda") == (2, 4, ("0", "1", "2", "3"))
    assert shared(plan, 1, device="cuda") == (1, 8, ())
    assert shared(plan, device="cuda:1") == (1, 8, ())
    assert shared(plan, device="cuda", cells=plan.cells[:2])[0] == 2
    assert shared(plan, device="cuda", model_bytes=25 * GB)[0] == 2, "main memory takes no more"
    assert shared(plan, device="cuda", model_bytes=900 * GB)[0] == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 5")
    assert shared(plan, device="cuda") == (2, 4, ("GPU-a", "5"))


@pytest.mark.usefixtures("machine")
def test_on_a_processor_cores_and_memory_decide(plan):
    def peaks(size):
        return {name: replace(each, peak_bytes=size) for name, each in plan.estimates.items()}

    assert shared(plan, estimates=peaks(GB)) == (4, 2, ())
    assert shared(plan, estimates=peaks(25 * GB)) == (2, 4, ())
    assert shared(plan, estimates=peaks(99 * GB)) == (1, 8, ())
    assert shared(plan, 8, estimates=peaks(99 * GB)) == (8, 1, ()), "who asks gets it"


@pytest.fixture
def outcomes_of(monkeypatch):
    """`outcomes_of(answer)`: cells have no process; `answer(job)` is how each ends."""

    def put(answer):
        def isolated(self, function, cell, limit, halvings=0, paged=False):
            return answer(self._job(cell, halvings, paged))

        monkeypatch.setattr(runner._Run, "_isolated", isolated)
        monkeypatch.setattr(runner, "add_scores", lambda *_: None)
        monkeypatch.setattr(outcomes, "environment", dict)
        monkeypatch.setattr(runner, "POLL", 0.01)

    return put


def fine():
    return {"facts": {}, "tokens": {}}


def test_no_two_cells_are_at_work_on_one_gpu(plan, outcomes_of, tmp_path):
    at_work, used = [], set()

    def answer(job):
        assert job.gpu not in at_work
        at_work.append(job.gpu)
        used.add(job.gpu)
        time.sleep(0.05)
        at_work.remove(job.gpu)
        return fine()

    outcomes_of(answer)
    records = runner.run(replace(plan, jobs=2, gpus=("3", "5")), Store(tmp_path), Silent())
    assert used == {"3", "5"} and {record.status for record in records} == {"ok"}


def test_a_process_sees_its_gpu_alone(plan, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    run = runner._Run(plan, Store(tmp_path), Silent(), {})
    run.at_work[plan.cells[0].id] = "2"
    job = replace(run._job(plan.cells[0], 0), place=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        work(lambda event: None, job)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "2"


def test_a_failure_is_told_where_nothing_can_be_printed(plan, tmp_path):
    run = runner._Run(plan, Store(tmp_path), Silent(), {})
    job = replace(run._job(plan.cells[0], 0), model=None)
    with Isolated(work_without_output, (job,)) as process:
        told = list(iter(lambda: process.next(60), None))
    assert told[-1]["reason"].startswith("AttributeError: ") and told[-1]["unwritable"] is False


def only(plan, method):
    return replace(plan, cells=tuple(cell for cell in plan.cells if cell.method == method)[:1])


def exhausted(job, phase="mini-text"):
    reason = "OutOfMemoryError: CUDA out of memory"
    memory = (GB, 80 * GB)
    return fine() | {"reason": reason, "out_of_memory": phase, "memory": memory}


def test_a_cell_that_runs_out_of_memory_is_tried_with_smaller_batches(plan, outcomes_of, tmp_path):
    outcomes_of(lambda job: exhausted(job) if job.halvings < 2 else fine())
    view = Silent()
    [record] = runner.run(only(plan, "rtn"), Store(tmp_path), view)
    assert record.status == "ok"
    [caution] = record.warnings
    assert caution.kind == "memory" and "batches of 16, 8; it was judged with 4" in caution.text
    notes = [said[1] for said in view.told if said[0] == "note"]
    assert len(notes) == 2 and "with a batch of 16; again with 8" in notes[0]


def test_what_no_batch_helps_fails_with_the_sizes(plan, outcomes_of, tmp_path):
    seen = []
    outcomes_of(lambda job: seen.append(job.halvings) or exhausted(job))
    [record] = runner.run(only(plan, "none"), Store(tmp_path), Silent())
    assert record.status == "failed" and seen == [0, 1, 2, 3, 4, 4]
    assert "batches of 16, 8, 4, 2, 1 and one block in memory at a time" in record.reason
    assert "of 80.0 GB of memory 1.0 GB were free" in record.reason


@pytest.mark.parametrize(
    "method, phase, tries",
    [
        ("rtn", "quantize", 2),
        ("flexround", "quantize", 2),
        ("gptq", "quantize", 6),
        ("gptq", "load", 2),
        ("flexround", "mini-text", 6),
    ],
)
def test_a_smaller_batch_is_tried_where_it_takes_less(
    plan, outcomes_of, tmp_path, method, phase, tries
):
    seen = []
    outcomes_of(lambda job: seen.append(job.halvings) or exhausted(job, phase))
    [record] = runner.run(only(plan, method), Store(tmp_path), Silent())
    assert record.status == "failed" and len(seen) == tries


def test_a_model_that_no_batch_helps_is_read_block_by_block(plan, outcomes_of, tmp_path):
    outcomes_of(lambda job: fine() if job.memory == 1 else exhausted(job, "load"))
    view = Silent()
    [record] = runner.run(only(plan, "rtn"), Store(tmp_path), view)
    assert record.status == "ok" and not record.warnings, "what comes out is the same"
    [note] = [said[1] for said in view.told if said[0] == "note"]
    assert note.endswith("ran out of memory in load; again with one block in memory at a time")


def test_a_kill_counts_where_the_system_did_it(plan, outcomes_of, tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "can_be_offloaded", lambda plan, cell: False)
    kills = iter([0, 1, 1, 1])
    monkeypatch.setattr(runner, "system_kills", lambda: next(kills))
    seen = []
    outcomes_of(lambda job: seen.append(job.halvings) or {"reason": "SIGKILL", "killed": True})
    [record] = runner.run(only(plan, "rtn"), Store(tmp_path), Silent())
    assert seen == [0, 1] and record.reason == "SIGKILL", "somebody else did it the second time"


def chained():
    try:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError as error:
            raise MethodError("layer 1: no") from error
    except MethodError as error:
        return error


def test_errors_of_memory_are_known_by_their_causes():
    assert back_off.is_out_of_memory(chained())
    assert back_off.is_out_of_memory(MemoryError())
    assert back_off.is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not back_off.is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    text = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"
    assert back_off.is_out_of_memory(RuntimeError(text))
    assert not back_off.is_out_of_memory(RuntimeError("mat1 and mat2 shapes"))
    assert not back_off.is_out_of_memory(ValueError("out of memory"))
    assert back_off.system_kills() >= 0


def test_batches_are_halved_down_to_one(plan):
    rtn, gptq = only(plan, "rtn").cells[0], only(plan, "gptq").cells[0]
    assert back_off.batches(plan, rtn) == back_off.batches(plan, gptq) == [16, 8, 4, 2, 1]
    assert [back_off.halved(16, times) for times in range(6)] == [16, 8, 4, 2, 1, 1]
    assert back_off.halved(3, 1) == 1


ENDLESS = """
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Endless:
    name: ClassVar[str] = "endless"
    paper: ClassVar[str] = "ours"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = False

    def quantize_weight(self, weight, scheme):
        raise MemoryError("no more")
"""


@pytest.mark.slow
def test_a_real_process_tells_where_memory_ran_out(tiny_folder, tmp_path):
    path = tmp_path / "endless.py"
    path.write_text(ENDLESS)
    plan = tiny_plan(tiny_folder, "endless", bits=(4,), plugin=(path,))
    [record] = runner.run(plan, Store(tmp_path / "run"), Silent())
    assert record.status == "failed" and "MemoryError: no more" in record.reason
    assert "tried were batches of 16 and one block in memory at a time; the" in record.reason
