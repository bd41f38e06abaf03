"""What a cell will cost, before it runs: from the model's shape and a measured matrix rate.

The constants are counts of multiply-adds, not fits; the result is right within a factor of about
two, and is only used for `--dry-run` and for the time left. What an item costs is declared by its
task.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
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
from qbench.tasks.declaration import Cost

RESERVE = 1 << 29  # bytes for what is not counted
SLOW_WRITING = 4  # a token that is written costs as much as four that are read: memory bound


@dataclass(frozen=True)
class Rates:
    """The machine and the model.

    evaluation, walk, training: flops per second in the dtypes in which each computes. parameters,
    block_weights: how many, of the model and of the layers to be quantized. widest: the largest
    dimension of these layers. itemsize: bytes of a parameter in evaluation.
    """

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
        """Quantizing and all tasks."""
        return self.quantize + sum(self.tasks.values())

    @property
    def quantize_share(self) -> float:
        """Part of the time that goes into quantizing, 0..1."""
        return self.quantize / self.seconds if self.seconds else 0.0


def measure_rates(skeleton: Any, device: str, dtype: str) -> Rates:
    """The shape of a model without weights, and the rate of matrix products (0.2 s each)."""
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


def estimate(cell: Cell, rates: Rates, costs: Mapping[str, Cost]) -> Estimate:
    """Time and memory of one cell. costs: of an item of each task, by its name in the cell."""
    tasks = {spec.name: _task_seconds(spec, costs[spec.name], rates) for spec in cell.tasks}
    if cell.method == "none":
        return Estimate(0.0, tasks, rates.itemsize * rates.parameters + _logits_bytes(cell, rates))
    weights = 4 * rates.parameters  # in float32
    if cell.calibration is None:
        seconds = rates.block_weights * 2e-7 + 3
        return Estimate(seconds, tasks, weights + RESERVE)
    tokens = cell.calibration.samples * cell.calibration.length
    streams = 4 * tokens * (2 * rates.hidden + rates.widest)
    method = get_method(cell.method, **cell.params)
    if verb_of(method) == "quantize_block":
        trained = tokens
        if trains(method):
            trained = method.training_tokens(tokens)
        # Both streams go forward; training is a forward and two backward products.
        passes = 2 * 2 * tokens + 6 * trained
        block = 32 * rates.block_weights // max(1, rates.blocks)
        seconds = passes * rates.block_weights / rates.training
        return Estimate(seconds, tasks, weights + 2 * streams + block + RESERVE)
    # 2 flops a weight and token. x x^T of each distinct input costs about half a forward pass.
    forward = 2 * tokens * rates.block_weights
    hessians = 2 * tokens * rates.block_weights * 0.5
    seconds = (forward + hessians) / rates.walk + rates.block_weights * 5e-7
    return Estimate(seconds, tasks, weights + streams + RESERVE)


def _task_seconds(spec: TaskSpec, cost: Cost, rates: Rates) -> float:
    per_token = 2 * rates.parameters / rates.evaluation
    items = cost.asked(spec.limit)
    if spec.length is not None:
        return items * spec.length * per_token * cost.pass_share * 1.3
    prompt = cost.tokens + (spec.num_fewshot or 0) * cost.tokens_per_shot
    solutions = items if spec.generate is None else spec.generate
    written = solutions * cost.written
    return items * prompt * per_token + written * per_token * SLOW_WRITING + 2


def _logits_bytes(cell: Cell, rates: Rates) -> int:
    """The logits of the longest window in float32, three times over."""
    longest = max((spec.length or 0 for spec in cell.tasks), default=0)
    return 4 * longest * rates.vocabulary * 3 + RESERVE


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
