"""The CUDA sources compiled without a GPU: they spill nothing, and multiply on matrix units."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from places import ROOT
from qbench.kernels.gpu.cuda import toolchain

UNITS = {"bit_serial": "BMMA", "byte_rows": "IMMA", "half_rows": "HMMA", "wide_rows": "HGMMA"}


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


@pytest.mark.parametrize(
    "kernel", ["bit_serial", "byte_rows", "half_rows", "wide_rows", "dequantize"]
)
def test_a_kernel_for_hopper(aot, kernel):
    entries = aot.compiled(aot.Case(kernel, 90, aot.ROWS[kernel][0], 2))
    assert aot.faults(entries) == []
    for entry in entries:
        assert 0 < entry["registers"] * entry["threads"] <= 65536, "a block fits a multiprocessor"
    found = {entry["function"]: entry["instructions"] for entry in entries}
    if kernel in UNITS:
        *_, product = found.values()
        assert UNITS[kernel] in product


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("name", ["normed", "gated", "attention", "largest"])
def test_what_stands_between_products(aot, name, architecture):
    macros = {"BF16": 1, "X_PLANES": 16} | ({"HEAD": 128} if name == "attention" else {})
    cubin = toolchain.compiled(f"{name}.cu", macros, architecture)
    facts = aot.functions(cubin, aot.cuobjdump(), "")[name]
    assert facts["stack_bytes"] == facts["spill_loads"] == facts["spill_stores"] == 0
    assert 0 < facts["registers"] <= 64, "1024 threads fit a multiprocessor"


def test_a_kernel_is_chosen_only_where_the_gpu_has_its_instructions(aot):
    served = {
        kernel: {sm for sm in aot.ARCHITECTURES if aot.served(kernel, sm)} for kernel in aot.ROWS
    }
    assert served["bit_serial"] == {80, 89, 90}
    assert served["wide_rows"] == {90}
    for kernel in ("byte_rows", "half_rows", "dequantize"):
        assert served[kernel] == {80, 89, 90, 100, 120}


@pytest.mark.long
def test_all_variants(tmp_path):
    command = [sys.executable, "-P", str(ROOT / "benchmarks" / "cuda_aot.py"), "--quick"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), *sys.path])
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_faults_are_seen(aot):
    (*_, entry) = aot.compiled(aot.Case("bit_serial", 90, 1, 3))
    assert aot.faults([entry]) == []
    spilling = {"loop": entry["loop"] | {"LDL": 2, "STL": 1}, "stack_bytes": 8}
    (fault,) = aot.faults([entry | spilling])
    assert "8 bytes of stack, 3 spills a pass" in fault
    (fault,) = aot.faults([entry | {"stack_bytes": 24}])
    assert "24 bytes of stack, 0 spills" in fault
    (fault,) = aot.faults([entry | {"instructions_per_bit": 2.5}])
    assert "2.5 instructions a bit, not 0.65" in fault
    assert aot.faults([entry | {"instructions_per_bit": 2.5, "rows": 4}]) == []
    (fault,) = aot.faults([entry | {"overwritten": ["1190 PRMT R94, RZ, 0x7610, R94"]}])
    assert "a product in flight reads what '1190 PRMT R94" in fault
