"""What block reconstruction costs.

`python benchmarks/reconstruction.py [--threads 2] [--json FILE]`

step      time of one training step, uniquanf against flexround, in turns on one block of the shape
          of SmolLM2-135M
mapping   time to choose the codes, bisection against the published mapping (distances to all 2^b
          levels, int64)
memory    bytes per weight that training one block takes beyond the block itself
growth    peak memory of quantizing random Llama models of 2, 4 and 8 equal blocks, beyond the model
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import qbench
from qbench import Scheme
from qbench.calibration.objective import Objective
from qbench.calibration.reconstruction import Weights
from qbench.calibration.training import Steps
from qbench.calibration.walk import enter
from qbench.contracts import BlockInputs
from qbench.environment import environment
from qbench.methods.levels import level_signs, nearest
from qbench.models.blocks import decoder_blocks, linears, read_weight

SMALL = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
LARGE = {
    "hidden_size": 1536,
    "intermediate_size": 4096,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}


def published_mapping(y: Tensor, levels: Tensor) -> Tensor:
    """The plain reference: index, int64, of the least of the distances (rows, g, 2^b)."""
    return (y[..., None] - levels[:, None]).abs().argmin(-1)


def llama(shape: dict[str, int], blocks: int) -> Any:
    """A random model with a small vocabulary."""
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=blocks, vocab_size=256)).eval()


def first_block(
    shape: dict[str, int], batches: int, size: int, length: int, dtype: torch.dtype
) -> Any:
    """(block, inputs, targets) of the first block of a random model."""
    model = llama(shape, 1)
    _, blocks = decoder_blocks(model)
    tokens = torch.randint(
        0, 256, (batches * size, length), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        streams = enter(model, blocks, tokens, size, torch.device("cpu"))
        hidden = [stream.hidden for stream in streams]
        inputs = BlockInputs(hidden, hidden, [stream.arguments[0] for stream in streams], dtype)
        return blocks[0], inputs, [inputs.run(blocks[0], x, i) for i, x in enumerate(hidden)]


def in_turns(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call; the first two rounds are not counted."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 2):
        for name, call in work.items():
            started = time.perf_counter()
            call()
            if turn > 1:
                times[name].append(time.perf_counter() - started)
    return times


def step_of(name: str, bits: int) -> Callable[[], float]:
    """One training step of 4 x 512 tokens, bfloat16 products."""
    block, inputs, targets = first_block(SMALL, 1, 4, 512, torch.bfloat16)
    fixed = {parameter: value.detach() for parameter, value in block.named_parameters()}
    method = qbench.get_method(name)
    weights = {
        name: method.prepare(read_weight(layer), Scheme(bits, 64))
        for name, layer in linears(block).items()
    }
    steps = Steps(Weights(block, weights), method, Objective(method.loss), 1, torch.device("cpu"))
    return lambda: steps.take(block, fixed, inputs, targets[0], 0)


def step(bits: int) -> dict[str, Any]:
    """Steps of both methods."""
    work = {name: step_of(name, bits) for name in ("flexround", "uniquanf")}
    return compared(in_turns(work, 12), "uniquanf", "flexround")


def mapping(bits: int) -> dict[str, Any]:
    """Codes of a 1536 x 576 weight in groups of 64."""
    draw = torch.Generator().manual_seed(0)
    uneven = 1 + 0.1 * torch.rand(13824, bits, generator=draw)
    alpha = 2.0 ** torch.arange(bits - 2, -2, -1) * uneven
    levels = alpha @ level_signs(bits, alpha.device).float().T  # (rows, 2^b)
    y = 2 * torch.randn(13824, 64, generator=draw)
    differs = (nearest(y, levels) != published_mapping(y, levels)).float().mean().item()
    work = {
        "bisection": lambda: nearest(y, levels),
        "published": lambda: published_mapping(y, levels),
    }
    return compared(in_turns(work, 8), "published", "bisection") | {"codes_that_differ": differs}


def compared(times: dict[str, list[float]], over: str, under: str) -> dict[str, Any]:
    """Medians in milliseconds, and the ratio of each pair of turns: median, lowest, highest."""
    ratios = sorted(a / b for a, b in zip(times[over], times[under], strict=True))
    medians = {f"{name}_ms": 1e3 * statistics.median(taken) for name, taken in times.items()}
    return medians | {
        f"{over}/{under}": statistics.median(ratios),
        "from": ratios[0],
        "to": ratios[-1],
    }


def memory(name: str, dtype: str) -> dict[str, Any]:
    """Peak resident memory of training one block of 28 M weights, less what was there before."""
    block, inputs, targets = first_block(LARGE, 2, 1, 16, getattr(torch, dtype))
    count = sum(layer.weight.numel() for layer in linears(block).values())
    before = peak()
    method = qbench.get_method(name, epochs=4)
    with torch.no_grad():
        method.quantize_block(block, inputs, targets, Scheme(4, 64))
    return {"bytes_per_weight": (peak() - before) / count, "weights": count}


def growth(name: str, blocks: int) -> dict[str, Any]:
    """Peak resident memory of quantizing a whole model, less what it took before."""
    model = llama(LARGE | {"intermediate_size": 2048}, blocks)
    before = peak()
    tokens = torch.randint(0, 256, (8, 32), generator=torch.Generator().manual_seed(0))
    qbench.quantize(model, qbench.get_method(name, epochs=1), Scheme(4, 64), tokens)
    return {
        "extra_MB": (peak() - before) / 1e6,
        "model_MB": sum(p.nbytes for p in model.parameters()) / 1e6,
    }


def peak() -> int:
    """Peak resident bytes of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


CASES: dict[str, Callable[..., dict[str, Any]]] = {
    "step": step,
    "mapping": mapping,
    "memory": memory,
    "growth": growth,
}
PLAN: list[tuple[str, tuple[Any, ...]]] = [
    *(("step", (bits,)) for bits in (2, 3, 4)),
    *(("mapping", (bits,)) for bits in (2, 3, 4)),
    *(
        ("memory", (name, dtype))
        for name in ("flexround", "uniquanf")
        for dtype in ("float32", "bfloat16")
    ),
    *(("growth", ("uniquanf", blocks)) for blocks in (2, 4, 8)),
]


def main() -> None:
    """Each case in a process of its own, so that peaks of memory do not mix."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=CASES, default=[*CASES])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.case:
        name, arguments = json.loads(options.case)
        print(json.dumps(CASES[name](*arguments)))
        return
    results = []
    for name, arguments in PLAN:
        if name not in options.only:
            continue
        result = in_own_process(name, arguments, options.threads)
        results.append({"case": name, "arguments": arguments, **result})
        print(
            name,
            *arguments,
            " ".join(f"{key} {value:.4g}" for key, value in result.items()),
            flush=True,
        )
    if options.json:
        record = {"environment": environment(), "threads": options.threads, "results": results}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def in_own_process(name: str, arguments: tuple[Any, ...], threads: int) -> dict[str, Any]:
    """The result of one case, measured in a process of its own."""
    command = [sys.executable, __file__, "--threads", str(threads)]
    command += ["--case", json.dumps([name, arguments])]
    variables = dict(os.environ)
    if name in ("memory", "growth"):
        # What is freed goes back at once, so that the peak is what was in use and not the reserve
        # of the allocator.
        variables |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    process = subprocess.run(command, check=True, capture_output=True, text=True, env=variables)
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
