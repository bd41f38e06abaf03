"""What a step of the trained methods costs on this GPU, and which kernels it goes to.

One block of a random Llama of 8B size, at 3 bits in groups of 128, with the settings of the preset
`paper`. Every method compiles its functions first, beside the others; then each is timed alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from gpu_report.processes import each
from gpu_report.random_model import LLAMA_8B
from qbench.calibration.walk import enter
from qbench.contracts import BlockInputs, Scheme
from qbench.experiment.presets import PRESETS
from qbench.models.blocks import decoder_blocks, linears
from qbench.registry import get_method

METHODS = ("uniquanf", "flexround", "flexbcq", "omniquant")
SIZES = (1, 4)  # windows in a batch
LENGTH = 2048  # tokens of a window
BATCHES = 9  # of which the last judges
STEPS = BATCHES - 1  # of an epoch
EPOCHS = 3  # the first warms up, the second is timed, and of the third some steps are profiled
PROFILED = 4  # steps, away from the judging at the end of an epoch
KERNELS = 15  # the longest, which are listed
SCHEME = Scheme(3, 128)
COMPILING = 0.4  # of the section's time, at most

Task = tuple[str, int]  # method, and windows in a batch


@dataclass
class Clock:
    """Takes the place of `progress`: the time at which each step began, and the kernels of some.

    profiled: the first of these steps, counted from 0.
    """

    profiled: int = (EPOCHS - 1) * STEPS + 1
    starts: list[float] = field(default_factory=list)
    profile: Any = None

    def __call__(self, fraction: float, text: str) -> None:
        """Called at the start of each step, with `epoch` in the text, and before training."""
        if "epoch" not in text:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())
        step = len(self.starts) - 1
        if step == self.profiled:
            activities = [torch.profiler.ProfilerActivity.CUDA]
            self.profile = torch.profiler.profile(activities=activities)
            self.profile.start()
        if step == self.profiled + PROFILED:
            self.profile.stop()


def block_of(size: int, device: str = "cuda", **sizes: int) -> tuple[nn.Module, BlockInputs]:
    """The block of a random model and what it is called with; the same inputs in both streams."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**(LLAMA_8B | {"num_hidden_layers": 1, "vocab_size": 1024} | sizes))
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(config).bfloat16().eval().requires_grad_(False)
    _, blocks = decoder_blocks(model)
    tokens = torch.randint(0, 1024, (BATCHES * size, LENGTH))
    streams = enter(model, blocks, tokens, size, torch.device(device))
    hidden = [stream.hidden for stream in streams]
    arguments = [stream.arguments[0] for stream in streams]
    return blocks[0], BlockInputs(hidden, hidden, arguments, torch.bfloat16)


def settings_of(name: str, size: int) -> dict[str, Any]:
    """The preset's parameters of a method, with so many windows a batch and these epochs."""
    settings = PRESETS["paper"]["settings"]
    own = {**settings["trained"], **settings[name]}
    return own | {"epochs": EPOCHS, "batch_size": size, "holdout": 1 / BATCHES}


@torch.no_grad()
def compiled(task: Task) -> None:
    """A method's training once, with two steps."""
    name, size = task
    block, inputs = block_of(size)
    few = replace(inputs, quantized=inputs.quantized[:2], full=inputs.full[:2])
    targets = [inputs.run(block, hidden, i) for i, hidden in enumerate(few.quantized)]
    method = get_method(name, **settings_of(name, size) | {"epochs": 2})
    method.quantize_block(block, few, targets, SCHEME)


@torch.no_grad()
def measured(task: Task) -> dict[str, Any]:
    """Milliseconds of a step, those in which the GPU computes, and the longest kernels."""
    name, size = task
    block, inputs = block_of(size)
    targets = [inputs.run(block, hidden, i) for i, hidden in enumerate(inputs.quantized)]
    method = get_method(name, **settings_of(name, size))
    clock = Clock()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    method.quantize_block(block, replace(inputs, progress=clock), targets, SCHEME)
    # All but the last step of the epoch, behind which it is judged.
    times = [after - before for before, after in pairwise(clock.starts[STEPS : 2 * STEPS])]
    kernels = kernels_of(clock.profile)
    return {
        "method": name,
        "batch_size": size,
        "start_s": clock.starts[0] - started,
        "step_ms": 1000 * median(times),
        "steps_measured": len(times),
        "device_ms": sum(kernel["ms"] for kernel in kernels),
        "kernels_a_step": sum(kernel["count"] for kernel in kernels),
        "products_ms": products_ms(block, inputs.quantized[0]),
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9,
        "longest": kernels[:KERNELS],
    }


def kernels_of(profile: Any) -> list[dict[str, Any]]:
    """Every kernel of a step, the longest first: how many, and milliseconds of all of them."""
    rows = []
    for event in profile.key_averages():
        ms = event.self_device_time_total / 1000 / PROFILED
        if ms:
            rows.append({"kernel": event.key[:120], "count": event.count / PROFILED, "ms": ms})
    return sorted(rows, key=lambda row: -row["ms"])


def products_ms(block: nn.Module, hidden: Tensor) -> float:
    """What the three products of every linear layer of a step cost alone, in milliseconds."""
    tokens = hidden.shape[0] * hidden.shape[1]
    sides = []
    for layer in linears(block).values():
        out, columns = layer.weight.shape
        x = torch.randn(tokens, columns, device=hidden.device, dtype=torch.bfloat16)
        gradient = torch.randn(tokens, out, device=hidden.device, dtype=torch.bfloat16)
        sides.append((layer.weight.bfloat16(), x, gradient))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for turn in range(8):
        if turn == 3:
            begin.record()
        for weight, x, gradient in sides:
            _ = x @ weight.T, gradient @ weight, gradient.T @ x
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 5


def run(write: Callable[[Any], None], quick: bool, seconds: float) -> bool:
    """Every method that is reached in time; whether none failed."""
    end = time.monotonic() + 0.95 * seconds
    tasks = [(name, size) for size in SIZES[: 1 if quick else 2] for name in METHODS]
    failures: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    first = [(name, SIZES[0]) for name in METHODS]
    for (name, size), _, reason in each(compiled, first, len(first), COMPILING * seconds):
        if reason is not None:
            failures[f"{name}, compiled with {size}"] = reason
    for (name, size), row, reason in each(measured, tasks, 1, end - time.monotonic()):
        if reason is not None:
            failures[f"{name}, {size} windows"] = reason
            continue
        rows.append(row)
        print(
            f"{name}, {size} x {LENGTH}: {row['step_ms']:.1f} ms a step, {row['device_ms']:.1f} of "
            f"{row['kernels_a_step']:.0f} kernels; products {row['products_ms']:.1f} ms; "
            f"{row['start_s']:.1f} s before, {row['peak_gb']:.1f} GB",
            flush=True,
        )
        for kernel in row["longest"]:
            print(f"  {kernel['count']:5.1f} x {kernel['ms']:6.2f} ms {kernel['kernel'][:90]}")
        write({"length": LENGTH, "rows": rows, "failures": failures})
    for title, reason in failures.items():
        print(f"{title}: {reason}", flush=True)
    write({"length": LENGTH, "rows": rows, "failures": failures})
    return all("in time" in reason for reason in failures.values())
