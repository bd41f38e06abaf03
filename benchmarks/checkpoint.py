"""What loading a packed model costs: `python benchmarks/checkpoint.py [--billions 1.0] [--folder DIR] [--json FILE]`.

Time against plainly reading the same files (both from the page cache, in turns), and peak memory
beyond the process against the packed size. Without --folder a random Llama of that many parameters
is written first.
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

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qbench.checkpoint.folder import save_checkpoint
from qbench.environment import environment
from qbench.files.shards import Shards
from qbench.formats import Uniform
from qbench.formats.packing import packed_length
from qbench.models.blocks import quantizable

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
    weights = {
        name: _random_weight(*layer.weight.shape, bits)
        for name, layer in quantizable(model).items()
    }
    for layer in quantizable(model).values():
        layer.weight = None  # it stays packed
    model = model.to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    torch.set_default_dtype(torch.float32)
    return save_checkpoint(folder, model, None, weights, {"method": "random"}, {})


def _random_weight(out: int, columns: int, bits: int) -> Uniform:
    codes = torch.randint(0, 256, (out, columns * bits // 8), dtype=torch.uint8)
    zero = torch.randint(0, 256, (out, packed_length(columns // 128, bits)), dtype=torch.uint8)
    return Uniform(
        codes, torch.ones(out, columns // 128, dtype=torch.float16), zero, bits, columns, 128
    )


def read_plainly(folder: Path) -> float:
    """Seconds to read all files into memory."""
    started = time.perf_counter()
    kept = [path.read_bytes() for path in folder.iterdir()]
    return time.perf_counter() - started if kept else 0.0


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
        size = sum(path.stat().st_size for path in folder.iterdir())
        entries = Shards(folder).entries
        largest = max(
            e.nbytes
            for name, e in entries.items()
            if e.dtype.is_floating_point and name.endswith(".weight")
        )
        rows = []
        for _ in range(args.repeats):
            plain = read_plainly(folder)
            done = subprocess.run(
                [sys.executable, "-P", "-c", LOAD, str(folder)], capture_output=True, text=True
            )
            seconds, peak = map(float, done.stdout.split()[-2:])
            rows.append((plain, seconds, peak))
    ratios = sorted(seconds / plain for plain, seconds, _ in rows)
    beyond = (max(peak for *_, peak in rows) - size - largest) / 1e6
    facts = {
        "bytes": size,
        "largest_unquantized_bytes": largest,
        "load_seconds": [seconds for _, seconds, _ in rows],
        "read_seconds": [plain for plain, *_ in rows],
        "load_over_read": statistics.median(ratios),
        "peak_bytes": max(peak for *_, peak in rows),
        "peak_beyond_packed_and_largest_mb": beyond,
        "environment": environment(),
    }
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    print(
        f"{size / 1e9:.2f} GB; loading takes {statistics.median(r[1] for r in rows):.2f} s, {spread} x reading"
    )
    print(
        f"peak {facts['peak_bytes'] / 1e9:.2f} GB: {beyond:+.0f} MB beyond packed size and largest unquantized tensor"
    )
    if args.json:
        args.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
