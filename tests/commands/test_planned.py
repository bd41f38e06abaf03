"""How a plan is told."""

from __future__ import annotations

import re

import pytest

from qbench.commands.planned import LeftToDo, downloads, how_long, plan_line, show_plan
from tiny_plans import tiny_plan
from tiny_runs import run_args


@pytest.mark.parametrize(
    "seconds, words",
    [(0, "0 min"), (1620, "27 min"), (200_160, "55.6 h"), (43_718_400, "506 days")],
)
def test_a_long_time_is_told_in_hours_or_days(seconds, words):
    assert how_long(seconds) == words


def test_a_dry_run_tells_cells_of_several_calibrations_apart(command, tiny_folder, tmp_path):
    extra = ["--set", "calibration.samples=2,4", "--dry-run"]
    arguments = run_args(tiny_folder, tmp_path, "rtn,gptq", "2", extra, tasks=("wikitext",))
    shown = command(*arguments).out
    for size in ("2x32", "4x32"):
        assert f"gptq 2b g32 pydoc-calibration:{size} " in shown
    assert "rtn 2b g32  " in shown, "it calibrates with nothing"
    shown = command(*arguments, "--only", "*:4x32").out
    assert "1 cells" in shown and "gptq 2b g32 pydoc-calibration:4x32 " in shown


def test_a_skipped_cell_is_told_with_its_model(tiny_folder, capsys):
    plan = tiny_plan(tiny_folder, "rtn")
    cell = plan.cells[-1]
    plan.skipped = {cell.id: "its package is missing"}
    show_plan(plan)
    told = f"skipped  {cell.model}  {plan.labels[cell.id]}  its package is missing\n"
    assert told in capsys.readouterr().out


def test_only_models_with_cells_left_are_downloaded(tiny_folder, tmp_path):
    plan = tiny_plan(tiny_folder, "rtn")
    first, second = (
        cell.model_copy(update={"model": name})
        for cell, name in zip(plan.cells, ("one", "two"), strict=True)
    )
    plan.cells = (first, second)
    plan.downloads = {"one": 2 * 10**9, "two": 5 * 10**9, "unselected": 9 * 10**9}
    assert downloads(plan, [first.id, second.id]) == "; downloads 7.0 GB of weights first"
    work = LeftToDo({second.id}, set(), {first.id: 60.0}, {second.id: 20.0})
    assert plan_line(plan, work, 60.0, tmp_path).endswith("; downloads 2.0 GB of weights first")
    assert downloads(plan, []) == ""


def test_a_dry_run_of_a_cluster_counts_no_latencies(command, tiny_folder, tmp_path, monkeypatch):
    # What earlier runs took on this machine can be less than half a second.
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path))
    extra = ["--latency", "--dry-run"]
    arguments = run_args(tiny_folder, tmp_path, "rtn", "2", extra, tasks=("wikitext",))
    here, there = (
        command(*arguments, *more).out
        for more in ([], ["--executor", "slurm", "--address", "debug"])
    )
    (measured,) = re.findall(r"(\d+) s +\S+ GB +\S+ GB$", here, re.MULTILINE)
    (left_out,) = re.findall(r"(\d+) s +\S+ GB +\S+ GB$", there, re.MULTILINE)
    assert int(measured) > 0 and int(left_out) == 0
