"""What a cell will cost, before it runs: from the model's shape and a measured matrix rate.

Products are counted, and what is beside them has been measured once on a CPU and on a GPU. The
result is right within a factor of about two; `qbench.experiment.timings` multiplies it by what
earlier runs on the machine took. What an item costs is declared by its task.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from qbench import sensitivity
from qbench.contracts import trains, verb_of
from qbench.environment import is_present, pick_dtype
from qbench.models.blocks import decoder_blocks, quantizable
from qbench.models.source import torch_dtype
from qbench.records import Cell, TaskSpec
from qbench.registry import get_method
from qbench.tasks.declaration import Cost

RESERVE = 1 << 29  # bytes for what is not counted
# Bytes of a weight in training, float32 unless said: the weight itself, the parameter of its size,
# its gradient and Adam's two moments (20); the rounded weight and its gradient (8), and both in
# the 16 bits of the matrix products (4).
TRAINED_BYTES = 32
LOGITS = 3  # copies of a window's logits: as they are, in float32, and their log-probabilities
FORWARD = 2  # flops of a weight for each token that passes
TRAINING = 6  # with the products that give the gradients of the inputs and of the weights
SLOW_WRITING = 4  # a token that is written costs as much as four that are read: memory bound
TASK_SECONDS = 1  # of a task, whatever it asks
LATENCY_SECONDS = 25  # of a format that is new to the run: its products
LATENCY_LOADS = 2  # and the times that the whole model is handled, packed and dense, for its memory
KNOWN_SECONDS = 1  # of one that is not
PROCESS_SECONDS = 1  # of a cell's process, whatever it does
ALLOCATED_WIDTHS = 4  # at which every layer is rounded to divide a budget
WORKER_SECONDS = 60  # of another package, to be imported, load and save
GROUP_BITS = 24  # of scales and zero points or shifts; 19 of `uniform` and 64 of `binary` at 3 bits
WORKER_PASSES = 20  # over the calibration text, of one that calibrates
# Flops per second of large products on a GPU that is in another machine: about three quarters of
# what the data sheet of an A100 says, in 16 bits and in float32.
ELSEWHERE = {2: 2.3e14, 4: 1.5e13}


@dataclass(frozen=True)
class Overheads:
    """What a kind of device needs beside matrix products, as measured.

    share: of the rate of a large product that the products of a transformer's blocks reach.
    windows: time of a pass over windows of text with logits and losses, relative to its products.
    hessians: work of x x^T, relative to a forward pass. Seconds of a weight: search, of methods
    that see weights alone; rounding, of those that see second moments; start, before training;
    step, beside the products of each training step. handling: seconds of a parameter, for loading,
    saving and loading again. compiling: seconds, once a process that trains.
    """

    share: float
    windows: float
    hessians: float
    search: float
    rounding: float
    start: float
    step: float
    handling: float
    compiling: float


OVERHEADS = {
    # One core of an AMD EPYC (Zen 4), shapes of SmolLM2-135M, 3 bits, groups of 64; the dearer of
    # `rtn` and `alternating`, `gptq`, and the dearer of `flexround` and `uniquanf`. x x^T is
    # symmetric, and numpy does half of it.
    "cpu": Overheads(
        share=0.5,
        windows=1.1,
        hessians=0.6,
        search=1.5e-7,
        rounding=2e-7,
        start=2e-7,
        step=2.5e-8,
        handling=5e-8,
        compiling=0.0,
    ),
    # NVIDIA H200, blocks of 8B size, 3 bits, groups of 128 (benchmarks/results).
    "cuda": Overheads(
        share=0.6,
        windows=1.3,
        hessians=1.2,
        search=2.6e-9,
        rounding=3.5e-9,
        start=3.4e-9,
        step=3.8e-11,
        handling=5e-9,
        compiling=13.0,
    ),
}


@dataclass(frozen=True)
class Rates:
    """The machine and the model.

    evaluation, walk, training: flops per second in the dtypes in which each computes. parameters,
    block_weights: how many, of the model and of the layers to be quantized. widest: the largest
    dimension of these layers. itemsize: bytes of a parameter in evaluation. stored: parameters in
    the model's files.
    """

    device: str
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
    stored: int = 0

    @property
    def overheads(self) -> Overheads:
        """Those of the device."""
        return OVERHEADS["cpu" if self.device == "cpu" else "cuda"]


@dataclass(frozen=True)
class Estimate:
    """Seconds to quantize and by task, bytes at the peak, seconds to measure latency.

    handling: seconds for the process, and for loading and saving models. disk_bytes: of the saved
    model.
    """

    quantize: float
    tasks: dict[str, float]
    peak_bytes: int
    latency: float = 0.0
    handling: float = 0.0
    disk_bytes: int = 0

    @property
    def seconds(self) -> float:
        """All that comes before latencies are measured."""
        return self.handling + self.quantize + sum(self.tasks.values())

    @property
    def quantize_share(self) -> float:
        """Part of the time that comes before the tasks, 0..1."""
        return (self.handling + self.quantize) / self.seconds if self.seconds else 0.0


def measure_rates(skeleton: Any, device: str, dtype: str, threads: int = 1) -> Rates:
    """The shape of a model without weights, and the rate of matrix products (0.2 s each).

    threads: of the processor, that a cell has.
    """
    layers = quantizable(skeleton)
    text = skeleton.config.get_text_config()
    computed = pick_dtype("auto", device)  # of the products of calibration
    return Rates(
        device=device,
        evaluation=_matrix_rate(device, dtype, threads),
        walk=_matrix_rate(device, computed, threads),
        training=_matrix_rate(device, computed, threads),
        parameters=sum(p.numel() for p in skeleton.parameters()),
        block_weights=sum(layer.weight.numel() for layer in layers.values()),
        blocks=len(decoder_blocks(skeleton)[1]),
        widest=max(max(layer.weight.shape) for layer in layers.values()),
        hidden=text.hidden_size,
        vocabulary=text.vocab_size,
        itemsize=torch_dtype(dtype).itemsize,
        stored=stored_parameters(skeleton),
    )


def stored_parameters(skeleton: Any) -> int:
    """How many numbers a model's files hold, where a head that is tied to the embedding is once.

    In a model without weights it has a parameter of its own.
    """
    count = sum(parameter.numel() for parameter in skeleton.parameters())
    head, embedding = skeleton.get_output_embeddings(), skeleton.get_input_embeddings()
    tied = getattr(skeleton.config.get_text_config(), "tie_word_embeddings", False)
    if tied and head is not None and head.weight is not embedding.weight:
        count -= head.weight.numel()
    return count


def estimate(cell: Cell, rates: Rates, costs: Mapping[str, Cost]) -> Estimate:
    """Time and memory of one cell. costs: of an item of each task, by its name in the cell."""
    tasks = {spec.name: _task_seconds(spec, costs[spec.name], rates) for spec in cell.tasks}
    judging = rates.itemsize * rates.parameters + _logits_bytes(cell, rates)
    handling = PROCESS_SECONDS + rates.parameters * rates.overheads.handling
    if cell.method == "none":
        return Estimate(0.0, tasks, judging, handling=handling)
    seconds = _quantize_seconds(cell, rates)
    peak = max(judging, _quantize_bytes(cell, rates))
    return Estimate(seconds, tasks, peak, 0.0, handling, _saved_bytes(cell, rates))


def _quantize_seconds(cell: Cell, rates: Rates) -> float:
    """Of the method, and of the walk that brings it its inputs."""
    weights = rates.block_weights
    other = rates.overheads
    sample = cell.calibration
    tokens = 0 if sample is None else sample.samples * sample.length
    forward = FORWARD * weights * tokens
    method = get_method(cell.method, **cell.params)
    if verb_of(method) == "worker_settings":
        return WORKER_SECONDS + weights * other.rounding + WORKER_PASSES * forward / rates.walk
    seconds = 0.0
    if cell.scheme is not None and cell.scheme.budget is not None:
        seen = min(tokens, sensitivity.TOKENS)
        seconds += TRAINING * rates.parameters * seen / rates.training
        seconds += ALLOCATED_WIDTHS * weights * other.search
    if sample is None or verb_of(method) == "quantize_weight":
        return seconds + weights * other.search
    if verb_of(method) == "quantize_linear":
        return seconds + forward * (1 + other.hessians) / rates.walk + weights * other.rounding
    # Targets, and the quantized stream.
    seconds += 2 * forward / rates.training + weights * other.start
    if trains(method):
        trained = method.training_tokens(tokens)
        steps = trained / (method.batch_size * sample.length)
        seconds += TRAINING * weights * trained / rates.training + weights * steps * other.step
        seconds += other.compiling
    return seconds


def _quantize_bytes(cell: Cell, rates: Rates) -> int:
    """At the peak: the model in float32 on a CPU, of which a GPU holds one block at a time."""
    block = rates.block_weights // max(1, rates.blocks)
    peak = 4 * (rates.parameters if rates.device == "cpu" else block) + RESERVE
    method = get_method(cell.method, **cell.params)
    if verb_of(method) == "worker_settings":
        return 2 * peak  # as it is and quantized, in another process
    if cell.calibration is None or verb_of(method) == "quantize_weight":
        return peak
    itemsize = 4 if rates.device == "cpu" else rates.itemsize
    tokens = cell.calibration.samples * cell.calibration.length
    streams = itemsize * tokens * (2 * rates.hidden + rates.widest)
    if verb_of(method) == "quantize_linear":
        return peak + streams
    # Inputs of both streams, and targets; batch by batch they are as wide as a layer.
    trained = block * getattr(method, "window", 1)  # of `Reconstruction`: blocks trained together
    return peak + itemsize * tokens * 4 * rates.hidden + TRAINED_BYTES * trained


def _saved_bytes(cell: Cell, rates: Rates) -> int:
    """Of the model that is saved, whose unquantized tensors are in the dtype it was read in."""
    if cell.scheme is None:
        return 0
    bits = cell.scheme.width + GROUP_BITS / (cell.scheme.group_size or rates.widest)
    itemsize = 4 if rates.device == "cpu" else rates.itemsize
    rest = itemsize * (rates.stored - rates.block_weights)
    return int(rates.block_weights * bits / 8) + rest


def _task_seconds(spec: TaskSpec, cost: Cost, rates: Rates) -> float:
    per_token = FORWARD * rates.parameters / rates.evaluation
    items = cost.asked(spec.limit)
    if spec.length is not None:
        return items * spec.length * per_token * cost.pass_share * rates.overheads.windows
    read = cost.read(spec.limit, spec.num_fewshot or 0)
    solutions = items if spec.generate is None else spec.generate
    written = solutions * cost.written
    return read * per_token + written * per_token * SLOW_WRITING + TASK_SECONDS


def _logits_bytes(cell: Cell, rates: Rates) -> int:
    longest = max((spec.length or 0 for spec in cell.tasks), default=0)
    return 4 * longest * rates.vocabulary * LOGITS + RESERVE


@cache
def _matrix_rate(device: str, dtype: str, threads: int) -> float:
    """Flops per second of one square product, measured once in a process, that blocks reach.

    A GPU needs a larger one, or its launch is what is measured. Of a GPU that is not here the rate
    is a constant.
    """
    share = OVERHEADS["cpu" if device == "cpu" else "cuda"].share
    if not is_present(device):
        return ELSEWHERE[torch_dtype(dtype).itemsize] * share
    size = 1024 if device == "cpu" else 8192
    a = torch.randn(size, size, device=device).to(torch_dtype(dtype))
    all_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        if device == "cpu":
            best = _fastest(lambda: a @ a, lambda: time.process_time() / threads)
        else:
            best = _fastest(lambda: _to_its_end(a), time.perf_counter)
    finally:
        torch.set_num_threads(all_threads)
    return 2 * size**3 / best * share


def _to_its_end(a: Tensor) -> None:
    a @ a
    torch.cuda.synchronize()


def _fastest(product: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of the quickest of the products that fit into 0.2 s, at least one.

    clock: of a processor it counts what this process computes, and not how long it waits for its
    turn, so that other work makes the machine no slower.
    """
    best = math.inf
    deadline = time.perf_counter() + 0.2
    while time.perf_counter() < deadline or best == math.inf:
        started = clock()
        product()
        best = min(best, clock() - started)
    return best
