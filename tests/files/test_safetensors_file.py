"""Files of tensors: the bytes are those of the safetensors library, and so is the hash."""

from __future__ import annotations

import hashlib

import torch
from safetensors.torch import save_file

from qbench.files import safetensors_file
from qbench.files.safetensors_file import DTYPES, write_tensors


def test_the_bytes_are_those_of_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors_file, "PIECE", 100)  # several pieces of a tensor
    generator = torch.Generator().manual_seed(0)
    tensors = {'ключ "q"': torch.arange(3), "scalar": torch.tensor(2.5)}
    for name in DTYPES:
        values = torch.randint(0, 2, (7, 31), generator=generator)
        tensors[f"{name}.b"] = values.to(getattr(torch, name))
        tensors[f"{name}.a"] = values.to(getattr(torch, name)).T  # not contiguous
        tensors[f"{name}.none"] = values[:0].to(getattr(torch, name))
    digest = write_tensors(tmp_path / "ours", tensors)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, tmp_path / "theirs", metadata={"format": "pt"})
    ours = (tmp_path / "ours").read_bytes()
    assert ours == (tmp_path / "theirs").read_bytes()
    assert digest == hashlib.sha256(ours).hexdigest()
