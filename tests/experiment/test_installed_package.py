"""One package is installed for real and quantizes a tiny model: `make test-peers`."""

from __future__ import annotations

import os

import pytest

from command_line import run_command
from qbench.experiment.store import read_records
from tiny_runs import run_args


def test_tests_of_installed_packages_are_asked_for_by_name():
    assert os.environ.get("QBENCH_TEST_PEERS") in (None, "1")


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("QBENCH_TEST_PEERS"), reason="make test-peers runs it")
def test_hqq_is_installed_and_quantizes(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("QBENCH_ENVS", str(tmp_path / "environments"))
    done = run_command("env", "create", "hqq")
    assert done.code == 0, done.err
    arguments = run_args(tiny_folder, tmp_path / "out", "rtn,hqq", "4", tasks=("divergence",))
    assert run_command(*arguments).code == 0
    records = {record.cell.method: record for record in read_records(tmp_path / "out")[0]}
    hqq = records["hqq"]
    assert hqq.status == "ok" and hqq.coverage["left"] == []
    written = hqq.environment["external"]
    assert written["read"] == "codes" and written["largest_difference"] <= 2**-8
    assert any(package.startswith("hqq==0.2.8") for package in written["packages"])
    assert hqq.bits_per_weight["codes"] == 4.0
    assert run_command("env", "remove", "hqq").code == 0
