"""Where a number comes from: code, packages and hardware; and what it cost in memory."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

import qbench
from qbench.errors import ConfigError, unknown_name

_M_MMAP_THRESHOLD = -3  # (malloc.h)
LARGE_BLOCK = 2 << 20  # bytes; temporaries of a slice are smaller, and soon needed again
_GROUP = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")
# Of a control group of version 2 and of version 1: its limit, what it takes, and the entry of its
# memory.stat with what it holds of files.
_FILES = {
    "": ("memory.max", "memory.current", "file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
}
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]B)?", re.IGNORECASE)
DEVICES = ("auto", "cpu", "cuda")
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
    """git commit of qbench, package versions, Python, operating system and hardware; JSON-able."""
    return {
        "git_commit": git_commit(),
        "packages": {name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "hardware": hardware(),
    }


def hardware() -> dict[str, Any]:
    """Processor, cores, threads of torch, memory in GB, and the GPU where there is one."""
    import torch

    machine: dict[str, Any] = {
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def cores() -> int:
    """Cores of the processor that this process may use."""
    with suppress(AttributeError):  # not every system has such a thing
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def git_commit() -> str | None:
    """The commit of the checkout that qbench runs from, with `+changes` where it is not clean.

    None where qbench does not run from a checkout, or git is not there.
    """
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}+changes" if changes else commit


def named_device(device: str) -> str:
    """`auto` is the first GPU here, else the CPU. ConfigError for what is no name of a device."""
    import torch

    require_device_name(device)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def require_device_name(device: str) -> None:
    """ConfigError for what is no name of a device, whether or not it is here."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", device):
        raise ConfigError(unknown_name("device", device, DEVICES))


def pick_device(device: str) -> str:
    """The device by its name; ConfigError for one that is not there."""
    import torch

    device = named_device(device)
    if not is_present(device):
        raise ConfigError(
            f"device {device!r} is not there: torch {torch.__version__} finds {_gpus()} GPUs; "
            "use --device cpu, or auto"
        )
    return device


def is_present(device: str) -> bool:
    """Whether this machine has a device of this name."""
    return device == "cpu" or int(device.partition(":")[2] or 0) < _gpus()


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def pick_dtype(dtype: str, device: str) -> str:
    """`auto` is bfloat16 on a GPU and on processors that are faster in it, else float32."""
    if dtype != "auto":
        return dtype
    if device != "cpu" or faster_in_bfloat16():
        return "bfloat16"
    return "float32"


@cache
def faster_in_bfloat16() -> bool:
    """Whether torch multiplies matrices faster in bfloat16 than in float32 on this processor.

    Measured once per process, on one thread, in 10 ms; where bfloat16 is emulated, in up to 0.3 s.
    The best of some turns is twice as fast on a Zen 4 core; told to do without AVX512-BF16 (with
    ONEDNN_MAX_CPU_ISA) 0.4 times, without AVX-512 0.2 times: nothing comes close to equal, so that
    a busy machine decides alike. With products of a quarter of this size on all threads, a busy
    machine was seen to decide otherwise, which makes all cells of a run others.
    """
    import torch

    pairs = {}
    for dtype in (torch.float32, torch.bfloat16):
        pairs[dtype] = torch.ones(128, 512, dtype=dtype), torch.ones(256, 512, dtype=dtype)
    best = dict.fromkeys(pairs, math.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for turn in range(9):
            for dtype, (x, weight) in pairs.items():
                started = time.perf_counter()
                torch.nn.functional.linear(x, weight)
                elapsed = time.perf_counter() - started
                if turn:  # the first of each is not counted: it compiles the product
                    best[dtype] = min(best[dtype], elapsed)
    finally:
        torch.set_num_threads(threads)
    return best[torch.bfloat16] < best[torch.float32]


def reset_peak_memory(device: str) -> None:
    """Begin to measure: the peak of the GPU's allocations, or of this process's resident memory."""
    if device != "cpu":
        import torch

        torch.cuda.reset_peak_memory_stats()
        return
    gc.collect()
    # What earlier work has freed goes back to the system, as it is no part of this peak.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    # Linux sets the high-water mark to the present size when it is told 5 (proc_pid_clear_refs(5)).
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: str) -> int:
    """Bytes at the peak since `reset_peak_memory`; where that is unknown, the present size."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):  # such as `VmHWM:   12345 kB`
                return int(line.split()[1]) * 1024
    return resident_memory()


def resident_memory() -> int:
    """Bytes that this process has in memory."""
    return int(psutil.Process().memory_info().rss)


def return_large_blocks() -> None:
    """From now on give memory of large tensors back to the system as soon as it is free.

    The C library keeps blocks of up to 32 MB for later, in pieces that the next tensors do not fit.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)


def bytes_of(text: str | int) -> int:
    """`8GB` or `500 MB` in bytes; ConfigError for anything else, and for parts of a byte."""
    size = _SIZE.fullmatch(str(text).strip())
    count = int(float(size[1]) * UNITS[(size[2] or "").upper()]) if size else 0
    if not size or not count or (not size[2] and count != float(size[1])):
        raise ConfigError(f"memory {text!r} is no size; give one such as 8GB or 500MB")
    return count


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, its control group and its limits."""
    return max(0, min(limit - used for limit, used in _limits()))


def allowed_memory() -> int:
    """Bytes that this process may have in all, by the same limits."""
    return min(limit for limit, _ in _limits())


def _limits() -> Iterator[tuple[int, int]]:
    """Bytes of each limit of memory, and how many of them are taken.

    What a group has read of files counts as free, since the system drops it where memory is needed.
    """
    machine = psutil.virtual_memory()
    yield machine.total, machine.total - machine.available
    for folder, (limit, used, cached) in _groups():
        with suppress(OSError, ValueError):  # no such file, or the word `max`
            lines = (folder / "memory.stat").read_text().splitlines()
            facts = dict(line.split() for line in lines)
            taken = int((folder / used).read_text()) - int(facts.get(cached, 0))
            yield int((folder / limit).read_text()), taken
    with suppress(ImportError, OSError):
        import resource

        status = Path("/proc/self/status").read_text()
        for kind, key in ((resource.RLIMIT_DATA, "VmData"), (resource.RLIMIT_AS, "VmSize")):
            soft, _ = resource.getrlimit(kind)
            size = re.search(rf"{key}:\s*(\d+) kB", status)
            if soft != resource.RLIM_INFINITY and size:
                yield soft, 1024 * int(size[1])


def _groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of the control groups that this process is in, and of those that hold them."""
    with suppress(OSError, ValueError):
        for line in _OWN_GROUPS.read_text().splitlines():
            _, controller, path = line.split(":", 2)
            if controller in _FILES:
                own = Path(path.lstrip("/"))
                for part in (own, *own.parents):
                    yield _GROUP / controller / part, _FILES[controller]


def _git(root: Path, *command: str) -> str:
    answer = subprocess.run(
        ["git", "-C", str(root), *command], capture_output=True, text=True, check=True
    )
    return answer.stdout.strip()


def _version(name: str) -> str | None:
    if name == "qbench-llm":  # it may run from a plain source tree, which has no metadata
        return qbench.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpuinfo(key: str) -> str:
    """The value in the first line of /proc/cpuinfo that begins with `key`, or nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    for line in lines:
        if line.startswith(key):
            return line.partition(":")[2].strip()
    return ""
