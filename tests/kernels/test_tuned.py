"""Files of tuned launches: what was measured before stays, and a damaged one is named."""

from __future__ import annotations

import json

import pytest
import torch

from qbench.errors import ConfigError
from qbench.kernels import tuned


@pytest.mark.parametrize("rows, bucket", [(1, 1), (3, 3), (5, 8), (65, 128), (9999, 4096)])
def test_rows_are_rounded_up_to_a_bucket(rows, bucket):
    name = tuned.key(rows, (64, 128), "binary", 3, 32, torch.bfloat16)
    assert name == f"m{bucket} n64 k128 binary b3 g32 bfloat16"


def test_a_file_is_named_after_the_gpu(tmp_path):
    path = tuned.TunedFiles(tmp_path, dict).path("NVIDIA H100 80GB HBM3")
    assert path == tmp_path / "NVIDIA_H100_80GB_HBM3.json"


def test_entries_are_added_and_replaced(tmp_path):
    path = tmp_path / "X.json"
    assert tuned.read(path, dict) == {}
    tuned.write(path, {"gpu": "X"}, {"a": {"n": 1}, "b": {"n": 2}})
    tuned.write(path, {"gpu": "X", "nvrtc": "13.0"}, {"b": {"n": 3}})
    assert tuned.read(path, lambda fields: fields["n"]) == {"a": 1, "b": 3}
    assert json.loads(path.read_text())["nvrtc"] == "13.0"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"configs": 3}', '{"configs": {"a": {"x": 1}}}'])
def test_a_damaged_file_is_named(tmp_path, text):
    path = tmp_path / "X.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"X\.json is not a file of tuned .* tune again"):
        tuned.read(path, lambda fields: fields["n"])
