"""The CUDA sources compiled without a GPU: they spill nothing, and multiply on matrix units."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from places import ROOT
from qbench.kernels.gpu.cuda import toolchain

UNITS = {"bit_serial": "BMMA", "half_rows": "HMMA", "wide_rows": "HGMMA"}


@pytest.fixture(scope="module")
def aot():
    """`benchmarks/cuda_aot.py`; skips where NVRTC or cuobjdump is not installed."""
    if toolchain.unavailable() is not None:
        pytest.skip(toolchain.unavailable())
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        module = importlib.import_module("cuda_aot")
    try:
        module.cuobjdump()
    except RuntimeError as error:
        pytest.skip(str(error))
    return module


@pytest.mark.parametrize("kernel", ["bit_serial", "half_rows", "wide_rows", "dequantize"])
def test_a_kernel_for_hopper(aot, kernel):
    entries = aot.compiled(aot.Case(kernel, 90, aot.ROWS[kernel][0], 2))
    assert_sound(entries)
    found = {entry["function"]: entry["instructions"] for entry in entries}
    if kernel in UNITS:
        *_, product = found.values()
        assert UNITS[kernel] in product


def test_a_kernel_is_chosen_only_where_the_gpu_has_its_instructions(aot):
    served = {
        kernel: {sm for sm in aot.ARCHITECTURES if aot.served(kernel, sm)} for kernel in aot.ROWS
    }
    assert served["bit_serial"] == {80, 89, 90}
    assert served["wide_rows"] == {90}
    assert served["half_rows"] == served["dequantize"] == {80, 89, 90, 100, 120}


@pytest.mark.slow
def test_all_variants(tmp_path):
    command = [sys.executable, "-P", str(ROOT / "benchmarks" / "cuda_aot.py"), "--quick"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), *sys.path])
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def assert_sound(entries):
    for entry in entries:
        assert entry["spill_loads"] == entry["spill_stores"] == entry["stack_bytes"] == 0
        assert 0 < entry["registers"] * entry["threads"] <= 65536, "a block fits a multiprocessor"
