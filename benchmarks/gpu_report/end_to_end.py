"""A random Llama of 8B size reads and writes, packed at 3 bits and dense in bfloat16, in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from gpu_report.random_model import LLAMA_8B, random_twins
from qbench.latency.decoding import Decoder
from qbench.latency.end_to_end import Speed, prompt_of
from qbench.latency.gpu_end_to_end import time_models

BITS = 3
GROUP = 128
PROMPT = 64
TOKENS = 128
REPEATS = 5


def run(write: Callable[[Any], None], quick: bool, seconds: float) -> bool:
    """Time both models, of two blocks if `quick`; whether the packed one computes the same."""
    sizes = LLAMA_8B | ({"num_hidden_layers": 2} if quick else {})
    packed, dense = random_twins(sizes, BITS, GROUP, "cuda", torch.bfloat16)
    makers = {f"packed {BITS} bits": lambda: packed, "dense bfloat16": lambda: dense}

    def progress(text: str) -> None:
        print(text, flush=True)

    facts: dict[str, Any] = {
        "sizes": sizes,
        "bits": BITS,
        "group_size": GROUP,
        "prompt": PROMPT,
        "tokens": TOKENS,
    }
    peaks: dict[str, int] = {}
    for title, fuse in (("as transformers computes", False), ("norms and rotary fused", True)):
        print(title, flush=True)
        speeds = time_models(makers, PROMPT, TOKENS, REPEATS, progress, fuse)
        for at, speed in enumerate(speeds):  # what is derived from weights stays for later passes
            peaks[speed.name] = max(speed.peak_bytes, peaks.get(speed.name, 0))
            speeds[at] = replace(speed, peak_bytes=peaks[speed.name])
        show(speeds)
        facts[title] = [asdict(speed) for speed in speeds]
        write(facts)
    for name, make in makers.items():
        facts[f"kernels of a step, {name}"] = kernels_of_a_step(make())
        write(facts)
    return True


def kernels_of_a_step(model: Any) -> list[dict[str, Any]]:
    """The kernels of writing one token, the longest first: how many, and microseconds of all."""
    tokens = 5
    decoder = Decoder(model, prompt_of(PROMPT, model.config.vocab_size), tokens)
    decoder.read()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        decoder.write()
        torch.cuda.synchronize()
    rows = []
    for event in profile.key_averages():
        microseconds = event.self_device_time_total / (tokens - 1)
        if microseconds:
            count = event.count / (tokens - 1)
            rows.append({"kernel": event.key, "count": count, "microseconds": microseconds})
    rows.sort(key=lambda row: -row["microseconds"])
    counted = sum(row["count"] for row in rows)
    print(f"{counted:.0f} kernels, {sum(row['microseconds'] for row in rows):.0f} us", flush=True)
    for row in rows[:12]:
        print(f"  {row['count']:4.0f} x {row['microseconds']:7.1f} us {row['kernel'][:90]}")
    return rows


def show(speeds: Sequence[Speed]) -> None:
    """A line for each model, and how they compare."""
    for speed in speeds:
        print(
            f"{speed.name}: writes {speed.decode[0]:.1f} tokens/s, reads {speed.prefill[0]:.0f} "
            f"tokens/s, first token after {1000 * speed.first_token:.1f} ms, peak "
            f"{speed.peak_bytes / 1e9:.2f} GB, {speed.kernels}, error {speed.error}",
            flush=True,
        )
    ours, theirs = speeds
    print(f"packed writes {ours.decode[0] / theirs.decode[0]:.2f} times as fast", flush=True)
