"""Claims are exclusive between processes, shared where asked, and end with their holder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import ExitStack

import pytest

from qbench.errors import StoreError
from qbench.files.claims import claimed, claimed_in_time, is_claimed

HOLD = """
import sys, time
from pathlib import Path
from qbench.files.claims import claimed
with claimed(Path(sys.argv[1]), shared=sys.argv[2] == "shared") as mine:
    print(mine, flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """`holder("shared")`: another process that holds a claim, once it has it."""
    started = []

    def start(kind):
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", HOLD, tmp_path / "claim", kind],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "True\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_claim_ends_with_the_process_that_holds_it(tmp_path, holder):
    path = tmp_path / "claim"
    other = holder("alone")
    with claimed(path) as mine:
        assert not mine
    with claimed(path, shared=True) as mine:
        assert not mine
    waited = []

    def waiting():
        waited.append(1)
        other.kill()

    with claimed_in_time(path, waiting):
        assert waited
        with claimed(path) as twice:
            assert not twice
    with claimed(path) as mine:
        assert mine


def test_a_claim_can_be_shared(tmp_path, holder):
    holder("shared")
    with claimed(tmp_path / "claim", shared=True) as mine:
        assert mine
    with claimed(tmp_path / "claim") as alone:
        assert not alone


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StoreError, match="cannot be written .*; free space"),
        claimed(tmp_path / "file" / "claim"),
    ):
        pass


def test_a_file_that_its_holder_removes_is_claimed_anew(tmp_path):
    folder = tmp_path / "claims"
    with ExitStack() as holder:
        holder.enter_context(claimed(folder / "runners"))

        def end():
            shutil.rmtree(folder)
            holder.close()

        with claimed_in_time(folder / "runners", end):
            assert is_claimed(folder / "runners"), "others find the file that is claimed"
