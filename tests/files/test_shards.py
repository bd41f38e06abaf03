"""Files of tensors that cannot be had."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from qbench.errors import StoreError
from qbench.files import shards
from qbench.files.shards import Shards


def test_a_file_that_memory_has_no_room_for_is_named(tmp_path, monkeypatch):
    save_file({"a": torch.zeros(2)}, tmp_path / "model.safetensors")

    def full(*_, **__):
        raise RuntimeError("unable to mmap 16 bytes: Cannot allocate memory (12)")

    monkeypatch.setattr(shards, "safe_open", full)
    with pytest.raises(StoreError, match=r"model.safetensors cannot be read: unable to mmap"):
        Shards(tmp_path).tensor("a")
