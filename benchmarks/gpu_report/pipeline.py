"""What it costs on this GPU to quantize a random Llama with two blocks of 8B size, by method."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

import qbench
from gpu_report.processes import each
from gpu_report.random_model import LLAMA_8B
from qbench.contracts import Scheme
from qbench.registry import get_method

# The cheapest first; the parameters, as trained methods would take minutes with their own.
METHODS: dict[str, dict[str, Any]] = {
    "rtn": {},
    "alternating": {},
    "gptq": {},
    "awq": {},
    "flexround": {"epochs": 1},
    "uniquanf": {"epochs": 1},
}
BLOCKS = 2
SAMPLES, LENGTH = 32, 2048  # of the calibration text, in windows and tokens
QUICK_SAMPLES = 4
SCHEME = Scheme(3, 128)


def quantized(task: tuple[str, int]) -> dict[str, Any]:
    """The method's name and the number of windows -> seconds and peak bytes of quantizing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    name, samples = task
    sizes = LLAMA_8B | {"num_hidden_layers": BLOCKS, "vocab_size": 32000}
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**sizes)).bfloat16().cpu().eval()
    tokens = torch.randint(0, 32000, (samples, LENGTH))
    method = get_method(name, **METHODS[name])
    torch.cuda.reset_peak_memory_stats()
    started = time.monotonic()
    qbench.quantize(model, method, SCHEME, tokens, device="cuda", dtype="bfloat16")
    torch.cuda.synchronize()
    seconds = time.monotonic() - started
    peak = torch.cuda.max_memory_allocated()
    return {"method": name, "seconds_per_block": seconds / BLOCKS, "peak_bytes": peak}


def run(write: Callable[[Any], None], quick: bool, seconds: float) -> bool:
    """Every method that is reached in time, one after the other; whether none failed."""
    samples = QUICK_SAMPLES if quick else SAMPLES
    rows: list[dict[str, Any]] = []
    failures: dict[str, str] = {}
    tasks = [(name, samples) for name in METHODS]
    for (name, _), row, reason in each(quantized, tasks, 1, 0.95 * seconds):
        if reason is None:
            rows.append(row)
            told = f"{row['seconds_per_block']:.2f} s a block, {row['peak_bytes'] / 1e9:.1f} GB"
        else:
            failures[name] = told = reason
        print(f"{name}: {told}", flush=True)
        write({"samples": samples, "length": LENGTH, "rows": rows, "failures": failures})
    return all("in time" in reason for reason in failures.values())
