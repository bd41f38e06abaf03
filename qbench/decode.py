"""How fast a model reads and writes: prefill and decode of packed and dense models, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from qbench.kernels.registry import served


@dataclass(frozen=True)
class Speed:
    """One model's medians, with the smallest and the largest of the repetitions.

    prefill, decode: tokens per second. first_token: seconds from the prompt to the first new token. bytes: of
    parameters and buffers. kernels: how many products each kernel served.
    """

    name: str
    prefill: tuple[float, float, float]
    decode: tuple[float, float, float]
    first_token: float
    bytes: int
    kernels: dict[str, int]


def measure(
    models: Mapping[str, Any], prompt: int = 64, tokens: int = 32, repeats: int = 5, device: str = "cpu"
) -> list[Speed]:
    """Read a prompt of `prompt` tokens and write `tokens` greedily, batch 1, each model in turn, `repeats` times.

    The first round warms up and is not counted.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    kernels: dict[str, dict[str, int]] = {}
    for turn in range(repeats + 1):
        for name, model in models.items():
            served(clear=True)
            found = _once(model, prompt, tokens, device)
            kernels[name] = served(clear=True)
            if turn:
                times[name].append(found)
    return [
        Speed(
            name,
            _spread([prompt / first for first, _ in times[name]]),
            _spread([(tokens - 1) / rest for _, rest in times[name]]),
            statistics.median(first for first, _ in times[name]),
            sum(t.nbytes for t in {t.data_ptr(): t for t in _tensors(model)}.values()),
            kernels[name],
        )
        for name, model in models.items()
    ]


@torch.inference_mode()
def _once(model: Any, prompt: int, tokens: int, device: str) -> tuple[float, float]:
    """(seconds to the first token, seconds of the others)."""
    ids = (torch.arange(prompt, device=device)[None] * 7 + 1) % model.config.vocab_size
    started = _clock(device)
    output = model(ids, use_cache=True, logits_to_keep=1)
    first = _clock(device)
    for _ in range(tokens - 1):
        ids = output.logits[:, -1:].argmax(-1)
        output = model(ids, use_cache=True, past_key_values=output.past_key_values, logits_to_keep=1)
    return first - started, _clock(device) - first


def _clock(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def _tensors(model: Any) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)
