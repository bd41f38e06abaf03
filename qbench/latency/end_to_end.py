"""How fast a saved model reads and writes, packed and dense, in turns; and how much memory each takes at its peak."""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qbench.errors import QbenchError
from qbench.kernels.dispatch import served
from qbench.quantization import load

VARIANTS = [(packed, dtype) for dtype in ("bfloat16", "float32") for packed in (True, False)]


@dataclass(frozen=True)
class Speed:
    """One model's medians, with the smallest and the largest of the repetitions.

    prefill, decode: tokens per second. first_token: seconds from the prompt to the first new token.
    peak_bytes: of a process that loads the model and does the same once, beyond what the process
    had before. kernels: how many products each kernel served.
    """

    name: str
    prefill: tuple[float, float, float]
    decode: tuple[float, float, float]
    first_token: float
    peak_bytes: int
    kernels: dict[str, int]


def compare(
    folder: Path,
    prompt: int,
    tokens: int,
    repeats: int,
    threads: int | None,
    progress: Callable[[str], None],
) -> list[Speed]:
    """A folder that `load` reads, packed and dense, in bfloat16 and float32: batch 1, greedy, on the CPU.

    Each model in turn, `repeats` times after one round that warms up. StoreError where the folder
    cannot be read.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    models = {_name(*variant): load(folder, variant[1], variant[0]).model for variant in VARIANTS}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    kernels: dict[str, dict[str, int]] = {}
    for turn in range(repeats + 1):
        for name, model in models.items():
            progress(f"round {turn + 1}/{repeats + 1}, {name}")
            served(clear=True)
            found = once(model, prompt, tokens)
            kernels[name] = served(clear=True)
            times[name] += [found] * bool(turn)
    return [
        _speed(folder, packed, dtype, prompt, tokens, times, kernels) for packed, dtype in VARIANTS
    ]


@torch.inference_mode()
def once(model: Any, prompt: int, tokens: int) -> tuple[float, float]:
    """(seconds to the first token, seconds of the others)."""
    ids = (torch.arange(prompt)[None] * 7 + 1) % model.config.vocab_size
    started = time.perf_counter()
    output = model(ids, use_cache=True, logits_to_keep=1)
    first = time.perf_counter()
    for _ in range(tokens - 1):
        ids = output.logits[:, -1:].argmax(-1)
        output = model(
            ids, use_cache=True, past_key_values=output.past_key_values, logits_to_keep=1
        )
    return first - started, time.perf_counter() - first


def _speed(
    folder: Path,
    packed: bool,
    dtype: str,
    prompt: int,
    tokens: int,
    times: Any,
    kernels: dict[str, dict[str, int]],
) -> Speed:
    name = _name(packed, dtype)
    prefill = _spread([prompt / first for first, _ in times[name]])
    decode = _spread([(tokens - 1) / rest for _, rest in times[name]])
    first = statistics.median(first for first, _ in times[name])
    return Speed(
        name, prefill, decode, first, _peak(folder, packed, dtype, prompt, tokens), kernels[name]
    )


def _peak(folder: Path, packed: bool, dtype: str, prompt: int, tokens: int) -> int:
    """Measured in a process of its own."""
    arguments = [str(folder), str(int(packed)), dtype, str(prompt), str(min(tokens, 4))]
    command = [sys.executable, "-P", "-m", "qbench.latency.end_to_end", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise QbenchError(
            f"the peak memory of {folder} could not be measured: {done.stderr.strip()[-300:]}"
        )
    return int(done.stdout.split()[-1])


def _name(packed: bool, dtype: str) -> str:
    return f"{'packed' if packed else 'dense'} {dtype}"


def _spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def _resident_peak() -> int:
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.is_file() else None
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    """What `_peak` runs."""
    import transformers.models.auto  # noqa: F401 -- paid before it is measured

    folder, packed, dtype, prompt, tokens = sys.argv[1:]
    before = _resident_peak()
    once(load(folder, dtype, bool(int(packed))).model, int(prompt), int(tokens))
    print(_resident_peak() - before)


if __name__ == "__main__":
    main()
