"""What a cell will cost, before it runs: from the model's shape and a matrix rate measured on this machine.

The constants are counts of multiply-adds, not fits; the result is right within a factor of about
two, and is only used for `--dry-run` and for the time left.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from qbench.contracts import trains, verb_of
from qbench.environment import pick_dtype
from qbench.models.blocks import decoder_blocks, quantizable
from qbench.models.source import torch_dtype
from qbench.records import Cell, TaskSpec
from qbench.registry import get_method

ITEM_TOKENS = {
    "arc_easy": 130,
    "arc_challenge": 150,
    "mmlu": 120,
    "gsm8k": 150,
}  # all choices of one item, 0-shot
SHOT_TOKENS = {"arc_easy": 40, "arc_challenge": 50, "mmlu": 110, "gsm8k": 160}
ITEMS = {
    "arc_easy": 2376,
    "arc_challenge": 1172,
    "mmlu": 14042,
    "gsm8k": 1319,
    "wikitext": 140,
    "divergence": 140,
}
WRITTEN = 200  # tokens of one generated solution
SUBJECTS = 57


@dataclass(frozen=True)
class Rates:
    """The machine and the model. evaluation, walk, training: flops per second in the dtypes in which each computes."""

    evaluation: float
    walk: float
    training: float
    parameters: int
    block_weights: int
    blocks: int
    widest: int
    hidden: int
    vocabulary: int
    itemsize: int


@dataclass(frozen=True)
class Estimate:
    """seconds to quantize, seconds by task, and bytes at the peak."""

    quantize: float
    tasks: dict[str, float]
    peak_bytes: int

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.quantize + sum(self.tasks.values())

    @property
    def quantize_share(self) -> float:
        """Part of the time that goes into quantizing, 0..1."""
        return self.quantize / self.seconds if self.seconds else 0.0


def measure_rates(skeleton: Any, device: str, dtype: str) -> Rates:
    """The shape of a model without weights, and the rate of matrix products (0.2 s of measuring)."""
    layers = quantizable(skeleton)
    text = skeleton.config.get_text_config()
    return Rates(
        evaluation=_matrix_rate(device, dtype),
        walk=_matrix_rate(device, "float32" if device == "cpu" else dtype),
        training=_matrix_rate(device, pick_dtype("auto", device)),
        parameters=sum(p.numel() for p in skeleton.parameters()),
        block_weights=sum(layer.weight.numel() for layer in layers.values()),
        blocks=len(decoder_blocks(skeleton)[1]),
        widest=max(max(layer.weight.shape) for layer in layers.values()),
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        itemsize=torch_dtype(dtype).itemsize,
    )


def estimate(cell: Cell, rates: Rates) -> Estimate:
    """Time and memory of one cell."""
    tasks = {spec.name: _task_seconds(spec, rates) for spec in cell.tasks}
    weights = 4 * rates.parameters
    if cell.method == "none":
        return Estimate(0.0, tasks, rates.itemsize * rates.parameters + _logits_bytes(cell, rates))
    if cell.calibration is None:
        return Estimate(rates.block_weights * 2e-7 + 3, tasks, weights + (1 << 29))
    tokens = cell.calibration.samples * cell.calibration.length
    streams = 4 * tokens * (2 * rates.hidden + rates.widest)
    method = get_method(cell.method, **cell.params)
    if verb_of(method) == "quantize_block":
        trained = method.training_tokens(tokens) if trains(method) else tokens
        passes = (
            2 * 2 * tokens + 6 * trained
        )  # both streams forward; training is a forward and two backward products
        block = 32 * rates.block_weights // max(1, rates.blocks)
        return Estimate(
            passes * rates.block_weights / rates.training,
            tasks,
            weights + 2 * streams + block + (1 << 29),
        )
    hessians = (
        2 * tokens * rates.block_weights * 0.5
    )  # x x^T of each distinct input: about half a forward pass
    seconds = (
        2 * tokens * rates.block_weights + hessians
    ) / rates.walk + rates.block_weights * 5e-7
    return Estimate(seconds, tasks, weights + streams + (1 << 29))


def _task_seconds(spec: TaskSpec, rates: Rates) -> float:
    name = "wikitext" if spec.name == "mini-text" else spec.name.removeprefix("mini-")
    per_token = 2 * rates.parameters / rates.evaluation
    if spec.length is not None:
        share = 0.5 if name in ("wikitext", "divergence") else 1.0  # the two share one pass
        return (spec.limit or ITEMS.get(name, 140)) * spec.length * per_token * share * 1.3
    items = (spec.limit or ITEMS.get(name, 1000)) * (
        SUBJECTS if name == "mmlu" and spec.limit else 1
    )
    prompt = ITEM_TOKENS.get(name, 150) + (spec.num_fewshot or 0) * SHOT_TOKENS.get(name, 100)
    written = (
        (items if spec.generate is None else spec.generate) * WRITTEN if name == "gsm8k" else 0
    )
    return (
        items * prompt * per_token + written * per_token * 4 + 2
    )  # one token at a time is memory bound


def _logits_bytes(cell: Cell, rates: Rates) -> int:
    return max(
        (4 * (spec.length or 0) * rates.vocabulary * 3 for spec in cell.tasks), default=0
    ) + (1 << 29)


@cache
def _matrix_rate(device: str, dtype: str) -> float:
    """Multiply-adds times two per second of a 1024-square product, measured once in a process."""
    a = torch.ones(1024, 1024, dtype=torch_dtype(dtype), device=device)
    best = math.inf
    deadline = time.perf_counter() + 0.2
    while time.perf_counter() < deadline or best == math.inf:
        started = time.perf_counter()
        a @ a
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * 1024**3 / best * 0.6  # what a transformer reaches of it
