"""Hidden states that are too many lie in files, with the same values."""

from __future__ import annotations

import os
import shutil

import pytest
import torch

from qbench.calibration.spool import keep, spooling
from qbench.errors import StoreError
from samples import normal


def is_mapped(tensor) -> bool:
    """Whether a tensor's memory is that of a file of `spooling`."""
    place = tensor.data_ptr()
    with open("/proc/self/maps") as lines:
        for line in lines:
            start, end = (int(part, 16) for part in line.split()[0].split("-"))
            if start <= place < end:
                return "qbench-stream-" in line
    return False


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_has_no_room_is_in_a_file_and_equal(tmp_path, dtype):
    tensors = [normal(2, 5, 7, seed=seed, dtype=torch.float32).to(dtype) for seed in range(3)]
    with spooling(tmp_path, room=tensors[0].nbytes) as spool:
        kept = [keep(tensor) for tensor in tensors]
    assert kept[0] is tensors[0] and spool.mapped == 2 * tensors[0].nbytes
    for before, after in zip(tensors, kept, strict=True):
        assert torch.equal(before, after) and before.dtype == after.dtype
    assert [is_mapped(tensor) for tensor in kept] == [False, True, True]
    assert not list(tmp_path.iterdir()), "files have no name, and go with their tensors"


def test_room_comes_back_with_a_tensor_that_goes(tmp_path):
    with spooling(tmp_path, room=100) as spool:
        first = keep(torch.zeros(25))
        assert keep(torch.zeros(25)) is not None and spool.mapped == 100
        del first
        assert spool.held == 0
        keep(torch.zeros(25))
    assert spool.mapped == 100


def test_without_spooling_a_tensor_stays_where_it_is():
    tensor = torch.zeros(3)
    assert keep(tensor) is tensor


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with (
        spooling(tmp_path, room=0),
        pytest.raises(StoreError, match=r"cannot be written into .*No space left on device"),
    ):
        keep(torch.zeros(3))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_one_sentence(tmp_path):
    shutil.rmtree(tmp_path)
    with spooling(tmp_path, room=0), pytest.raises(StoreError, match="No such file"):
        keep(torch.zeros(3))
