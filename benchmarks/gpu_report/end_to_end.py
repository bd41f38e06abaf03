"""A random Llama of 8B size reads and writes, packed at 3 bits and dense in bfloat16, in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from gpu_report.random_model import LLAMA_8B, random_twins
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

    speeds = time_models(makers, PROMPT, TOKENS, REPEATS, progress)
    for speed in speeds:
        print(
            f"{speed.name}: writes {speed.decode[0]:.1f} tokens/s, reads {speed.prefill[0]:.0f} "
            f"tokens/s, first token after {1000 * speed.first_token:.1f} ms, peak "
            f"{speed.peak_bytes / 1e9:.2f} GB, {speed.kernels}",
            flush=True,
        )
    ours, theirs = speeds
    print(f"packed writes {ours.decode[0] / theirs.decode[0]:.2f} times as fast", flush=True)
    facts = {"sizes": sizes, "bits": BITS, "group_size": GROUP, "prompt": PROMPT, "tokens": TOKENS}
    write(facts | {"rows": [asdict(speed) for speed in speeds]})
    return True
