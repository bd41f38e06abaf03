"""What earlier runs took corrects the estimate of later ones of the same kind, and of no others."""

from __future__ import annotations

import json

import pytest

from qbench.commands.planned import accuracy
from qbench.contracts import Scheme
from qbench.experiment.estimate import Estimate, Rates
from qbench.experiment.plan import Plan
from qbench.experiment.timings import (
    Clock,
    Timings,
    corrected,
    kind_of,
    learn,
    learn_from,
    makespan,
)
from qbench.records import Cell, Record, TaskSpec
from tiny_runs import run_args

HARDWARE = {"cpu": "a processor", "gpu": "a card"}
MODELLED = Estimate(10.0, {"wikitext": 4.0, "divergence": 4.0, "mmlu": 5.0}, 0, 20.0, handling=2.0)


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))


def cell(method="gptq", bits=3, device="cpu"):
    tasks = [
        TaskSpec(name="wikitext", data="text", sha256="0" * 64, length=8),
        TaskSpec(name="divergence", data="text", sha256="0" * 64, length=8),
        TaskSpec(name="mmlu", data="mmlu", sha256="0" * 64, num_fewshot=0),
    ]
    return Cell(
        model="m",
        revision="1",
        method=method,
        source="1",
        params={},
        calibration=None,
        scheme=Scheme(bits, 64),
        dtype="float32",
        seed=0,
        device=device,
        tasks=tuple(tasks),
    )


def record(of, quantized=30.0, windows=6.0, mmlu=10.0, status="ok"):
    # The pass over the windows is counted where it is made, and a reference beside the tasks.
    evaluation = {"wikitext": windows, "divergence": 0.0, "mmlu": mmlu}
    return Record(
        id=of.id,
        cell=of,
        status=status,
        quantize_seconds=quantized,
        evaluate_seconds=windows + mmlu + 1,
        evaluation={name: {"seconds": seconds} for name, seconds in evaluation.items()},
    )


def kind(**changes):
    facts = {
        "device": "cpu",
        "dtype": "float32",
        "jobs": 2,
        "threads": 1,
        "parameters": 134_000_000,
    }
    return kind_of(HARDWARE, **(facts | changes))


def test_a_later_estimate_is_what_it_took_before():
    timings = Timings.open(kind())
    mine = cell()
    assert learn(mine, record(mine), 52.0, MODELLED, timings)
    timings.save()
    known = Timings.open(kind())
    again = corrected(mine, MODELLED, known)
    assert (again.quantize, again.tasks["mmlu"], again.handling) == (30.0, 10.0, 6.0)
    assert again.tasks["wikitext"] + again.tasks["divergence"] == 6.0
    assert again.seconds == 52.0
    other = corrected(cell(bits=4), MODELLED, known)
    assert other.quantize == 30.0, "of other bits what is known of the method"
    assert corrected(cell("omniquant"), MODELLED, known).quantize == 10.0
    unlike = kind(jobs=1), kind(parameters=8_000_000_000), kind(dtype="bfloat16")
    for facts in unlike:
        assert Timings.open(facts).factors == {}
    assert Timings.open(kind(parameters=110_000_000)).factors == known.factors


def test_the_median_of_the_latest_counts():
    timings = Timings.open(kind())
    mine = cell()
    for seconds in (900.0, 20.0, 40.0, 30.0):
        learn(mine, record(mine, quantized=seconds), 2000.0, MODELLED, timings)
    assert corrected(mine, MODELLED, timings).quantize == 30.0


def test_of_two_the_quicker_counts_as_other_work_only_slows_down():
    timings = Timings.open(kind())
    mine = cell()
    for seconds in (200.0, 40.0):
        learn(mine, record(mine, quantized=seconds), 2000.0, MODELLED, timings)
    assert corrected(mine, MODELLED, timings).quantize == 40.0


@pytest.mark.parametrize("whole", [True, False])
def test_only_a_run_that_made_a_cell_learns_from_its_latency(whole):
    timings, mine = Timings.open(kind()), cell()
    plan = Plan(None, (mine,), {}, None, {}, "cpu", timings={"m": timings})
    plan.modelled[mine.id] = plan.estimates[mine.id] = MODELLED
    clock = Clock(None)
    clock.latencies[mine.id] = 0.1 if not whole else 40.0  # an earlier run has timed its format
    if whole:
        clock.cells[mine.id] = 52.0
    learn_from(plan, [record(mine)], clock)
    assert timings.factors.get("latency") == ([2.0] if whole else None)


def test_a_cell_that_somebody_else_has_begun_says_nothing():
    timings = Timings.open(kind())
    mine = cell()
    assert not learn(mine, record(mine), 5.0, MODELLED, timings), "its model was there already"
    assert not learn(mine, record(mine, status="failed"), 99.0, MODELLED, timings)
    assert timings.factors == {}


def test_the_first_guess_is_of_a_processor():
    fresh = Timings.open(kind())
    assert corrected(cell("rtn"), MODELLED, fresh).quantize < MODELLED.quantize
    assert corrected(cell("rtn", device="cuda"), MODELLED, fresh) == MODELLED


@pytest.mark.parametrize("text", ["", "[]", '{"factors": {"a": 1}}', '{"factors": {"a": [-1]}}'])
def test_a_damaged_file_is_as_none(text):
    timings = Timings.open(kind())
    timings.save()
    timings.place.write_text(text)
    assert Timings.open(kind()) == Timings(timings.place)


def test_where_nothing_can_be_kept_the_run_goes_on(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "file"))
    Timings.open(kind()).save()


def test_a_busy_moment_makes_no_machine_slower():
    shape = {"parameters": 1, "block_weights": 1, "blocks": 1, "widest": 1, "hidden": 1}
    rates = Rates("cpu", 5.0, 6.0, 7.0, **shape, vocabulary=1, itemsize=4)
    timings = Timings.open(kind())
    assert timings.fastest(rates) == rates
    timings.save()
    slower = Rates("cpu", 1.0, 8.0, 1.0, **shape, vocabulary=1, itemsize=4)
    known = Timings.open(kind()).fastest(slower)
    assert (known.evaluation, known.walk, known.training) == (5.0, 8.0, 7.0)


def test_cells_at_a_time_end_with_the_last():
    assert makespan([3.0, 3.0, 3.0], 2) == 6.0
    assert makespan([5.0, 1.0, 1.0, 1.0], 2) == 5.0
    assert makespan([2.0, 3.0], 1) == 5.0 and makespan([], 3) == 0.0


def test_a_clock_hands_on_and_notes():
    class Heard:
        def __init__(self):
            self.words = []

        def __getattr__(self, name):
            return lambda *given: self.words.append(name)

    heard, mine = Heard(), cell()
    clock = Clock(heard)
    clock.begin(mine, 1, 1)
    clock.progress(mine, 0.5, "half")
    clock.finish(record(mine))
    clock.measured(record(mine))  # by somebody else
    assert heard.words == ["begin", "progress", "finish", "measured"]
    assert list(clock.cells) == [mine.id] and clock.latencies == {}
    clock.begin_latency(mine)
    clock.measured(record(mine))
    assert 0 <= clock.latencies[mine.id] <= clock.seconds


def test_the_last_line_says_how_far_off_it_was():
    line = accuracy(1680.0, 960.0, [0.5, 1.0, 2.25])
    assert line.startswith("time  28.0 min, 1.75 times the 16.0 min estimated")
    assert line.endswith("its cells took 0.50 to 2.25 times theirs")


@pytest.mark.slow
@pytest.mark.usefixtures("without_pictures")
def test_a_run_learns_for_the_next_one(tiny_folder, command, tmp_path):
    args = run_args(tiny_folder, tmp_path / "run", "none,rtn", "3", (), ("wikitext",))
    code, text, error = command(*args)
    assert code == 0, text + error
    assert "times the" in text and "its cells took" in text
    (kept,) = (tmp_path / "cache" / "timings").iterdir()
    names = json.loads(kept.read_text())["factors"]
    assert {"quantize rtn 3", "windows", "handling"} <= set(names)
    code, text, error = command(*args)
    assert "its cells took" not in text, "nothing was left to do"
    code, text, error = command(*args, "--dry-run")
    assert "estimated from what earlier runs took on this machine" in text
