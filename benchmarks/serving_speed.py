"""How fast vLLM decodes a folder of ours against the same model in bfloat16, on this processor.

`make serving-speed` runs it, in the environment of `make test-vllm`.

Both engines are in a process of their own, one thread, one request at a time and eight together.
Processor seconds are what a shared machine does not distort; seconds of the clock stand beside
them. A rate is the tokens written by the difference of two runs that differ in their length alone,
so that reading the prompt and what a request costs cancel.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from qbench.models.source import find_model

SHORT, LONG = 4, 36  # tokens written
PROMPT = list(range(100, 132))
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    """Time both, print a line for each, and write what was measured."""
    arguments = _arguments()
    if arguments.worker:
        print(json.dumps(_measured(arguments.packed, arguments.rounds)))
        return
    results: dict[str, Any] = {"processor": _processor(), "threads": 1, "dtype": "bfloat16"}
    dense = find_model(arguments.dense).location
    for label, folder in (("packed", arguments.packed), ("dense", dense)):
        command = [sys.executable, "-P", __file__, folder, folder, "--worker"]
        command += ["--rounds", str(arguments.rounds)]
        done = subprocess.run(
            command, env=os.environ | SETTINGS, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{folder}: {done.stderr[-2000:]}")
        results[label] = json.loads(done.stdout.splitlines()[-1])
        for rows, rates in results[label]["tokens_per_second"].items():
            megabytes = results[label]["weight_bytes"] / 1e6
            print(
                f"{label}  {rows} at a time  {rates['processor']:.1f} tokens a processor second, "
                f"{rates['clock']:.1f} a second  weights {megabytes:.1f} MB"
            )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def _measured(folder: str, rounds: int) -> dict[str, Any]:
    """Rates and bytes of one folder, in this process."""
    from vllm import LLM

    llm = LLM(folder, dtype="bfloat16", max_model_len=256, max_num_seqs=8, enforce_eager=True)
    rates = {}
    for rows in (1, 8):
        _run(llm, rows, SHORT)  # kernels and caches are warm from here on
        measured = [_rate(llm, rows) for _ in range(rounds)]
        rates[str(rows)] = {
            kind: statistics.median(rate[kind] for rate in measured)
            for kind in ("processor", "clock")
        }
    (nbytes,) = llm.apply_model(_bytes)
    return {"tokens_per_second": rates, "weight_bytes": nbytes, "rounds": rounds}


def _rate(llm: Any, rows: int) -> dict[str, float]:
    short, long = _run(llm, rows, SHORT), _run(llm, rows, LONG)
    tokens = rows * (LONG - SHORT)
    return {kind: tokens / (long[kind] - short[kind]) for kind in ("processor", "clock")}


def _run(llm: Any, rows: int, written: int) -> dict[str, float]:
    """Seconds of this process and of the clock for writing so many tokens."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [row, *PROMPT]} for row in range(rows)]
    settings = SamplingParams(temperature=0, max_tokens=written, ignore_eos=True)
    processor, clock = time.process_time(), time.perf_counter()
    llm.generate(prompts, settings, use_tqdm=False)
    return {"processor": time.process_time() - processor, "clock": time.perf_counter() - clock}


def _bytes(model: Any) -> int:
    """Of the linear layers' weights; embeddings and norms are the same in both.

    Of a dense layer by its shape: vLLM hands such weights to its library, and empties them.
    """
    from vllm.model_executor.layers.linear import LinearBase

    total = 0
    for layer in model.modules():
        if hasattr(layer, "qbench_parts"):
            total += sum(getattr(layer, part).nbytes for part in layer.qbench_parts)
        elif isinstance(layer, LinearBase):
            total += layer.input_size * layer.output_size * layer.params_dtype.itemsize
    return total


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("packed", help="a folder that `qbench quantize` wrote")
    parser.add_argument("dense", help="the model that it was made of, a name or a folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
