"""What would keep a run from writing its results is said before its first cell."""

from __future__ import annotations

import json
import re

import pytest

from qbench.experiment.record_file import checksum
from tiny_runs import empty_picture, run_args


@pytest.fixture
def small(tiny_folder, tmp_path):
    """The command of a run of two cells, and its folder."""
    return run_args(tiny_folder, tmp_path / "run", "rtn", tasks=("wikitext",)), tmp_path / "run"


@pytest.fixture
def without_drawing(monkeypatch):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", empty_picture)


def written_by_a_newer(folder, name):
    """A record as a newer qbench would write it."""
    body = {"schema": 999}
    (folder / "records").mkdir(parents=True, exist_ok=True)
    path = folder / "records" / f"{name}.json"
    path.write_text(json.dumps(body | {"checksum": checksum(body)}))


def test_a_record_of_a_newer_qbench_is_met_before_the_work(command, small):
    arguments, folder = small
    planned = command(*arguments, "--dry-run").out
    cell = re.search(r"[0-9a-f]{12}(?=.*rtn 4b)", planned)[0]
    written_by_a_newer(folder, cell)
    done = command(*arguments)
    assert done.code == 2 and "to run" not in done.out, done
    assert done.err.splitlines()[-1] == (
        f"qbench: record {cell}.json is of schema 999, newer than 1, which this qbench reads: use "
        "the qbench that wrote it; give another --out"
    )
    assert len(list((folder / "records").iterdir())) == 1


@pytest.mark.slow
def test_a_record_of_another_cell_may_be_newer(command, small, without_drawing):
    arguments, folder = small
    written_by_a_newer(folder, "0" * 12)
    done = command(*arguments, "--only", "2b")
    assert done.code == 0, done
    assert "warning: record 000000000000.json is of schema 999, newer than 1" in done.err


@pytest.mark.parametrize(
    "name",
    ["samples", "items", "artifacts", "reference", "latency", "logs", "plans", "cells", "pictures"],
)
def test_a_file_in_the_place_of_a_folder_is_met_before_the_work(command, small, name):
    arguments, folder = small
    folder.mkdir()
    (folder / name).write_text("mine\n")
    done = command(*arguments)
    assert done.code == 2 and "to run" not in done.out, done
    assert done.err.splitlines()[-1] == (
        f"qbench: {folder / name} cannot be written (File exists); remove it, or make it a folder "
        "that you can write to"
    )
    assert (folder / name).read_text() == "mine\n"


def test_samples_of_a_cell_that_are_a_file_are_met_before_the_work(command, small):
    arguments, folder = small
    cell = re.search(r"[0-9a-f]{12}(?=.*rtn 4b)", command(*arguments, "--dry-run").out)[0]
    (folder / "samples").mkdir(parents=True)
    (folder / "samples" / cell).write_text("")
    done = command(*arguments)
    assert done.code == 2 and "to run" not in done.out, done
    assert f"samples/{cell} cannot be written (File exists)" in done.err
