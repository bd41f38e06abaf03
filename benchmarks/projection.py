"""What whole models cost to quantize, from what one block was measured to cost.

`python benchmarks/projection.py [benchmarks/results/pipeline_NVIDIA_H200.json]` on a GPU
`python benchmarks/projection.py benchmarks/results/block_costs_cpu.json` on a CPU, block by block

The file holds what was measured; the table that this prints is stored in it, as `projected`. A
block of a larger model takes longer in proportion to its weights; for `gptq` that leaves out the
factorizations, which grow faster, and are a fifth of its time at 8B; for trained methods, the
judging of every epoch, and what is once a process: compiling. Where a model
is read block by block (`benchmarks/block_costs.py`), there is in memory what is outside the blocks,
in float32, and what a block takes, in proportion to its weights; hidden states are in files.
"""

from __future__ import annotations

import argparse
import json
from math import ceil
from pathlib import Path
from typing import Any

import yaml

from qbench.files.atomic import write_text

RESULTS = Path(__file__).parent / "results"
PRESETS = Path(__file__).parents[1] / "qbench" / "experiment" / "presets.yaml"
MODELS = {  # blocks, hidden and intermediate size, width of keys and values
    "8B": (32, 4096, 14336, 1024),
    "70B": (80, 8192, 28672, 1024),
}
VOCABULARY = 128256  # of Llama 3, in an embedding and in a head
HOLDOUT = 0.125  # of the batches, which judge and do not train


def block_weights(model: str) -> int:
    """Weights of the linear layers of one block of a Llama."""
    _, hidden, intermediate, keys = MODELS[model]
    return 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * intermediate


def projected(measured: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Minutes to quantize a whole model, by model and method.

    measured: `seconds_per_block` of methods that do not train; of those that do, in `training`,
    the seconds before (`start_s`) and the milliseconds of a step (`step_ms`) with one window a
    batch. Trained methods have the epochs of the preset `paper`.
    """
    paper = yaml.safe_load(PRESETS.read_text())["paper"]
    samples = paper["calibration"]["samples"]
    steps = paper["settings"]["trained"]["epochs"] * ceil(samples * (1 - HOLDOUT))
    seconds = dict(measured["seconds_per_block"])
    for method, times in measured.get("training", {}).items():
        seconds[method] = times["start_s"] + steps * times["step_ms"] / 1000
    minutes = {}
    for model, (blocks, *_) in MODELS.items():
        growth = block_weights(model) / block_weights("8B")
        minutes[model] = {
            method: round(blocks * growth * block / 60, 1) for method, block in seconds.items()
        }
    return minutes


def projected_block_by_block(measured: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of whole models: GB of their files in bfloat16 and whole in float32; by method, GB in memory
    at the peak of quantizing and judging, and processor hours to quantize.

    measured: by method, what `costs` of `benchmarks/block_costs.py` tells of one block.
    """
    table: dict[str, dict[str, float]] = {}
    for model, (blocks, hidden, *_) in MODELS.items():
        growth = block_weights(model) / measured["model"]["block_weights"]
        outside = 2 * VOCABULARY * hidden
        numbers = outside + blocks * block_weights(model)
        row = {"files GB": 2 * numbers / 1e9, "whole GB": 4 * numbers / 1e9}
        for method, costs in measured["methods"].items():
            peak = max(costs["quantize_bytes"], costs["judge_bytes"])
            row[f"{method} GB"] = (4 * outside + growth * peak) / 1e9
            row[f"{method} h"] = blocks * growth * costs["quantize_seconds"] / 3600
        table[model] = {name: round(value, 1) for name, value in row.items()}
    return table


def main() -> None:
    """Print the table, and store it beside the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", nargs="?", type=Path, default=RESULTS / "pipeline_NVIDIA_H200.json")
    path: Path = parser.parse_args().file
    measured = json.loads(path.read_text())
    if "methods" in measured:
        unit, table = "block by block", projected_block_by_block(measured)
    else:
        unit, table = "minutes to quantize", projected(measured)
    measured["projected"] = {"unit": unit, **table}
    write_text(path, json.dumps(measured, indent=1) + "\n")
    methods = list(measured["projected"]["8B"])
    print(f"{unit:20}" + "".join(f"{method:>14}" for method in methods))
    for model in MODELS:
        row = measured["projected"][model]
        print(f"{model:20}" + "".join(f"{row[method]:14.1f}" for method in methods))


if __name__ == "__main__":
    main()
