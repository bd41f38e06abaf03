"""What loading a packed model costs: `python benchmarks/checkpoint.py [--json FILE]`.

Time against plainly reading the same files (both from the page cache, in turns), and peak memory
beyond the process against the packed size. The model is that of --folder DIR; without it, a random
Llama of --billions 1.0 parameters at --bits 3 is written first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qbench.checkpoint.write_folder import save_checkpoint
from qbench.environment import environment
from qbench.files.shards import Shards
from qbench.formats import Uniform
from qbench.formats.packing import packed_length
from qbench.models.blocks import quantizable

GROUP_SIZE = 128
# Run in a process of its own, whose peak of memory is that of loading.
LOAD = """
import re, sys, time
from pathlib import Path
import qbench, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
def peak():  # of this process alone: ru_maxrss would begin with the parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
before = peak()
started = time.perf_counter()
loaded = qbench.load(sys.argv[1])
for tensor in loaded.model.state_dict().values():  # every page is in memory, not only mapped
    tensor.flatten().view(torch.uint8)[::4096].sum()
seconds = time.perf_counter() - started
print(seconds, peak() - before)
"""


def random_folder(folder: Path, billions: float, bits: int) -> Path:
    """A Llama with random codes: what the numbers are does not matter here."""
    # 50 million parameters a block of this shape, beside the embedding and the head
    blocks = max(1, round((billions * 1e9 - 2 * 32000 * 2048) / 50e6))
    shape = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
    }
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=blocks, vocab_size=32000))
    weights = {}
    for name, layer in quantizable(model).items():
        out, columns = layer.weight.shape
        weights[name] = _random_weight(out, columns, bits)
        layer.weight = None  # it stays packed
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    torch.set_default_dtype(torch.float32)
    return save_checkpoint(folder, model, None, weights, {"method": "random"}, {})


def _random_weight(out: int, columns: int, bits: int) -> Uniform:
    groups = columns // GROUP_SIZE
    return Uniform(
        codes=torch.randint(0, 256, (out, columns * bits // 8), dtype=torch.uint8),
        stored_scale=torch.ones(out, groups, dtype=torch.float16),
        stored_zero=torch.randint(0, 256, (out, packed_length(groups, bits)), dtype=torch.uint8),
        bits=bits,
        in_features=columns,
        group_size=GROUP_SIZE,
    )


def read_plainly(folder: Path) -> float:
    """Seconds to read all files into memory."""
    started = time.perf_counter()
    contents = [path.read_bytes() for path in folder.iterdir()]  # all of them stay in memory
    seconds = time.perf_counter() - started
    return seconds if contents else 0.0


def load(folder: Path) -> tuple[float, float]:
    """(seconds, peak bytes) of `qbench.load` in a process of its own."""
    command = [sys.executable, "-P", "-c", LOAD, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    seconds, peak = map(float, done.stdout.split()[-2:])
    return seconds, peak


def quotients(numerators: list[float], denominators: list[float]) -> list[float]:
    """Pair by pair."""
    return [above / below for above, below in zip(numerators, denominators, strict=True)]


def measure(folder: Path, repeats: int) -> dict[str, Any]:
    """Read and load in turns; the facts, in bytes, seconds and megabytes."""
    size = sum(path.stat().st_size for path in folder.iterdir())
    largest = max(
        tensor.nbytes
        for name, tensor in Shards(folder).entries.items()
        if tensor.dtype.is_floating_point and name.endswith(".weight")
    )
    read_seconds = []
    load_seconds = []
    peaks = []
    for _ in range(repeats):
        read_seconds.append(read_plainly(folder))
        seconds, peak = load(folder)
        load_seconds.append(seconds)
        peaks.append(peak)
    return {
        "bytes": size,
        "largest_unquantized_bytes": largest,
        "load_seconds": load_seconds,
        "read_seconds": read_seconds,
        "load_over_read": statistics.median(quotients(load_seconds, read_seconds)),
        "peak_bytes": max(peaks),
        "peak_beyond_packed_and_largest_mb": (max(peaks) - size - largest) / 1e6,
        "environment": environment(),
    }


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--billions", type=float, default=1.0)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.folder or random_folder(Path(scratch) / "model", args.billions, args.bits)
        facts = measure(folder, args.repeats)
    ratios = quotients(facts["load_seconds"], facts["read_seconds"])
    spread = f"{facts['load_over_read']:.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
    print(
        f"{facts['bytes'] / 1e9:.2f} GB; "
        f"loading takes {statistics.median(facts['load_seconds']):.2f} s, {spread} x reading"
    )
    print(
        f"peak {facts['peak_bytes'] / 1e9:.2f} GB: "
        f"{facts['peak_beyond_packed_and_largest_mb']:+.0f} MB beyond packed size and "
        "largest unquantized tensor"
    )
    if args.json:
        args.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
