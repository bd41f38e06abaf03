"""Where a number comes from: code, packages, hardware; and what it cost in memory."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

PACKAGES = (
    "qbench-llm",
    "torch",
    "transformers",
    "lm_eval",
    "datasets",
    "safetensors",
    "tokenizers",
    "numpy",
)


def environment() -> dict[str, Any]:
    """git commit of qbench, package versions, Python, operating system and hardware."""
    return {
        "git_commit": git_commit(),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """Processor, cores, threads, memory, and the GPU where there is one."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def git_commit() -> str | None:
    """The commit of the checkout that qbench runs from, with `+changes` where it is not clean; None if it is none."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit, status = (
            subprocess.run(
                ["git", "-C", str(root), *args], capture_output=True, text=True, check=True
            ).stdout.strip()
            for args in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if status else "")


def pick_device(device: str) -> str:
    """`auto` is the first GPU, else the CPU."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def pick_dtype(dtype: str, device: str) -> str:
    """`auto` is bfloat16 on a GPU and on processors that compute in it, else float32."""
    if dtype != "auto":
        return dtype
    native = device != "cpu" or {"avx512_bf16", "amx_bf16"} & set(_cpuinfo("flags").split())
    return "bfloat16" if native else "float32"


def reset_peak_memory(device: str) -> None:
    """Begin to measure: the peak of the GPU's allocations, or of this process's resident memory."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work has freed is not part of this peak
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text(
            "5"
        )  # Linux: sets the high-water mark to the present size


def peak_memory(device: str) -> int:
    """Bytes at the peak since `reset_peak_memory`; where that is unknown, the present size."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return int(psutil.Process().memory_info().rss)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
