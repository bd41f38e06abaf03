"""NVRTC without a GPU: what is compiled, what is kept, and what is said where it cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest

from places import ROOT
from qbench.errors import ConfigError
from qbench.kernels.gpu.cuda import toolchain

needs_nvrtc = pytest.mark.skipif(
    toolchain.unavailable() is not None,
    reason=f"{toolchain.unavailable()}",
)
SOURCE = """
#include "three.cuh"
extern "C" __global__ void store(int* a) { a[threadIdx.x] = THREE * FACTOR; }
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of sources in the place of the package's, and an empty cache."""
    monkeypatch.setenv("QBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(toolchain, "FOLDER", tmp_path)
    (tmp_path / "store.cu").write_text(SOURCE)
    (tmp_path / "three.cuh").write_text("#define THREE 3\n")
    return tmp_path


@pytest.fixture
def compilations(monkeypatch):
    """The options of each compilation, as they come."""
    seen = []
    compile_now = toolchain._compile

    def recorded(source, options, texts):
        seen.append(options)
        return compile_now(source, options, texts)

    monkeypatch.setattr(toolchain, "_compile", recorded)
    return seen


def cached(folder):
    return sorted((folder / "cache" / "cubins").glob("*.cubin"))


def test_hopper_is_compiled_for_with_its_own_instructions():
    names = [toolchain.architecture(found) for found in ((8, 0), (8, 9), (9, 0), (10, 0), (12, 0))]
    assert names == ["sm_80", "sm_89", "sm_90a", "sm_100", "sm_120"]


@needs_nvrtc
def test_a_source_is_compiled_once(folder, compilations):
    first = toolchain.compiled("store.cu", {"FACTOR": 2}, "sm_90a")
    assert first[:4] == b"\x7fELF"
    assert toolchain.compiled("store.cu", {"FACTOR": 2}, "sm_90a") == first
    assert len(compilations) == len(cached(folder)) == 1
    assert {"-DFACTOR=2", "--gpu-architecture=sm_90a"} <= set(compilations[0])


@needs_nvrtc
def test_whatever_changes_the_code_is_compiled_anew(folder, compilations):
    def compiled(factor=2, architecture="sm_90a"):
        return toolchain.compiled("store.cu", {"FACTOR": factor}, architecture)

    found = [compiled(), compiled(factor=5), compiled(architecture="sm_80")]
    (folder / "three.cuh").write_text("#define THREE 7\n")
    found.append(compiled())
    (folder / "store.cu").write_text(SOURCE.replace("* FACTOR", "+ FACTOR"))
    found.append(compiled())
    assert len(set(found)) == len(compilations) == len(cached(folder)) == 5


@needs_nvrtc
@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[:40] + b"?" + data[41:], lambda data: b""],
    ids=["cut off", "changed", "empty"],
)
def test_a_damaged_file_is_compiled_again(folder, compilations, damage):
    first = toolchain.compiled("store.cu", {"FACTOR": 2}, "sm_90a")
    (path,) = cached(folder)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert toolchain.compiled("store.cu", {"FACTOR": 2}, "sm_90a") == first
    assert len(compilations) == 2 and path.read_bytes() == whole


@needs_nvrtc
def test_a_cache_that_cannot_be_written_is_no_error(folder, compilations):
    (folder / "cache").write_text("a file in the place of the folder")
    for _ in range(2):
        assert toolchain.compiled("store.cu", {"FACTOR": 2}, "sm_90a")
    assert len(compilations) == 2


@needs_nvrtc
def test_a_source_that_does_not_compile_says_where(folder):
    with pytest.raises(ConfigError, match=r'store\.cu\(3\): error: identifier "FACTOR"') as caught:
        toolchain.compiled("store.cu", {}, "sm_90a")
    assert "name another kernel" in str(caught.value) and "\n" not in str(caught.value)
    assert not cached(folder)


@pytest.mark.slow
@needs_nvrtc
def test_two_processes_may_compile_the_same_at_once(folder):
    code = (
        "import pathlib, sys; from qbench.kernels.gpu.cuda import toolchain;"
        "toolchain.FOLDER = pathlib.Path(sys.argv[1]);"
        "sys.stdout.buffer.write(toolchain.compiled('store.cu', {'FACTOR': 2}, 'sm_90a'))"
    )
    command = [sys.executable, "-P", "-c", code, str(folder)]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], results
    (path,) = cached(folder)
    assert {output for output, _ in results} == {path.read_bytes()[toolchain.DIGEST :]}
    assert not list(path.parent.glob(".*")), "nothing half written stays"


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.setattr(toolchain, "nvrtc_version", toolchain.nvrtc_version.__wrapped__)
    reason = toolchain.unavailable.__wrapped__()
    assert reason == "cuda-bindings is not installed; install qbench's extra `gpu`"

    def no_library():
        raise RuntimeError("Failed to dlopen libnvrtc.so.13\nand more")

    monkeypatch.setattr(toolchain, "nvrtc_version", no_library)
    assert toolchain.unavailable.__wrapped__() == (
        "NVRTC cannot be loaded (Failed to dlopen libnvrtc.so.13); install nvidia-cuda-nvrtc"
    )
