"""A random Llama of 8B size reads and writes, packed at 3 bits and dense in bfloat16, in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import torch

from gpu_report.random_model import LLAMA_8B, random_twins
from qbench.latency.decoding import Decoder, Fusion
from qbench.latency.end_to_end import Speed, prompt_of
from qbench.latency.gpu_end_to_end import time_models

BITS = 3
GROUP = 128
PROMPT = 64
TOKENS = 128
REPEATS = 3


class Way(NamedTuple):
    """How a step is computed."""

    title: str
    fusion: Fusion


# The newest comes last: whatever becomes of it, the others are there.
WAYS = (
    Way("as transformers computes", "none"),
    Way("norms and rotary fused", "modules"),
    Way("a token by few kernels", "token"),
)


def run(write: Callable[[Any], None], quick: bool, seconds: float) -> bool:
    """Time both models, of two blocks if `quick`; whether the packed one computes the same."""
    sizes = LLAMA_8B | ({"num_hidden_layers": 2} if quick else {})
    packed, dense = random_twins(sizes, BITS, GROUP, "cuda", torch.bfloat16)
    makers = {f"packed {BITS} bits": lambda: packed, "dense bfloat16": lambda: dense}
    facts: dict[str, Any] = {
        "sizes": sizes,
        "bits": BITS,
        "group_size": GROUP,
        "prompt": PROMPT,
        "tokens": TOKENS,
    }
    peaks: dict[str, int] = {}
    fastest: tuple[float, Way] | None = None
    failed = False
    for way in WAYS:
        try:
            speeds = timed(way, makers, facts, peaks, write)
        except Exception as error:  # whatever it is, what was timed before is kept
            failed = True
            report_failure(way.title, error, facts, write)
            continue
        if fastest is None or speeds[0].decode[0] > fastest[0]:
            fastest = speeds[0].decode[0], way
    if fastest is None:
        return False
    for name, make in makers.items():
        facts[f"kernels of a step, {name}"] = kernels_of_a_step(make(), fastest[1])
        write(facts)
    return not failed


def timed(
    way: Way,
    makers: Mapping[str, Callable[[], Any]],
    facts: dict[str, Any],
    peaks: dict[str, int],
    write: Callable[[Any], None],
) -> list[Speed]:
    """Both models in one way, printed and written. peaks: by name, of all ways so far."""
    print(way.title, flush=True)

    def progress(text: str) -> None:
        print(text, flush=True)

    speeds = time_models(makers, PROMPT, TOKENS, REPEATS, progress, way.fusion)
    for at, speed in enumerate(speeds):  # what is derived from weights stays for later passes
        peaks[speed.name] = max(speed.peak_bytes, peaks.get(speed.name, 0))
        speeds[at] = replace(speed, peak_bytes=peaks[speed.name])
    show(speeds)
    facts[way.title] = [asdict(speed) for speed in speeds]
    write(facts)
    return speeds


def report_failure(
    title: str, error: Exception, facts: dict[str, Any], write: Callable[[Any], None]
) -> None:
    """Print and keep why one way was not timed."""
    facts[title] = f"{type(error).__name__}: {error}"[:500]
    print(f"{title}: {facts[title]}", flush=True)
    write(facts)


def kernels_of_a_step(model: Any, way: Way) -> list[dict[str, Any]]:
    """The kernels of writing one token, the longest first: how many, and microseconds of all.

    One that begins beside the one before it counts while it waits, too.
    """
    tokens = 5
    ids = prompt_of(PROMPT, model.config.vocab_size)
    decoder = Decoder(model, ids, tokens, way.fusion)
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
            f"{speed.peak_bytes / 1e9:.2f} GB, {speed.kernels}, error {speed.error}, "
            f"of a step {speed.step_error}",
            flush=True,
        )
        if speed.refused is not None:
            print(f"{speed.name} writes by its own modules: {speed.refused}", flush=True)
    ours, theirs = speeds
    print(f"packed writes {ours.decode[0] / theirs.decode[0]:.2f} times as fast", flush=True)
