"""The default dtype: what the processor is faster in, as measured."""

from __future__ import annotations

import os
import platform

import pytest
import torch

from fresh_python import run_python
from qbench import environment

CODE = "from qbench.environment import pick_dtype; print(pick_dtype('auto', 'cpu'))"


def test_a_dtype_that_is_named_stays():
    for device in ("cpu", "cuda"):
        assert environment.pick_dtype("float32", device) == "float32"
        assert environment.pick_dtype("bfloat16", device) == "bfloat16"
    assert environment.pick_dtype("auto", "cuda") == "bfloat16"


@pytest.mark.parametrize("slow, expected", [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_the_processor_decides_by_what_it_is_faster_in(monkeypatch, slow, expected):
    """Products in one dtype are made to take longer; the other one is chosen."""
    product = torch.nn.functional.linear

    def hampered(x, weight):
        for _ in range(200 if x.dtype == getattr(torch, slow) else 0):
            product(x.float(), weight.float())
        return product(x, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", hampered)
    environment.faster_in_bfloat16.cache_clear()
    try:
        assert environment.pick_dtype("auto", "cpu") == expected
    finally:
        environment.faster_in_bfloat16.cache_clear()


def test_instructions_that_torch_may_not_use_do_not_count():
    """A processor may have AVX512-BF16 where its use is forbidden: then float32 is faster."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        pytest.skip("torch multiplies without oneDNN's kernels for x86 here")
    done = run_python("-c", CODE, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"})
    assert done.stdout.strip() == "float32", done.stderr
