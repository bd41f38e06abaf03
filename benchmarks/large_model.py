"""A model that is larger than an enforced limit of memory, quantized and judged under that limit.

`python benchmarks/large_model.py [--limit 1GB] [--blocks 48] [--methods rtn] [--compare]`

Writes a random Llama in bfloat16 and runs `qbench run` on it: first as if there were memory enough,
which the limit must end, then as it is by default, which reads and writes block by block. With
--compare a third run, without a limit and with the model whole, must come to the same scores.

The limit is RLIMIT_DATA. It counts what a process has of private writable memory, be it touched or
not, which is what cannot be dropped; mapped files, such as those of hidden states, are outside. A
control group would count what the system keeps of files as well, which it drops by itself, and
needs the rights of an administrator; RLIMIT_AS would count files that are only mapped. Peaks are
looked at five times a second, over all processes of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, PreTrainedTokenizerFast

from qbench.environment import bytes_of, environment
from qbench.experiment.store import read_records
from qbench.files.atomic import write_text
from qbench.files.safetensors_file import write_tensors
from qbench.files.written_folder import write_index

RESULTS = Path(__file__).parent / "results" / "large_model_cpu.json"
SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
}
VOCABULARY = 259
WINDOWS, LENGTH = 2, 64  # of text that is judged, and of that which calibrates
LOOK = 0.2  # seconds
KINDS = {"data": "VmData", "anonymous": "RssAnon", "resident": "VmHWM"}
START = "from qbench.commands.main import main; main()"


def write_model(folder: Path, blocks: int, shape: Mapping[str, int] = SHAPE) -> dict[str, int]:
    """Write a random Llama, a block in memory at a time; its bytes, and how many numbers it has."""
    config = LlamaConfig(
        num_hidden_layers=blocks,
        vocab_size=VOCABULARY,
        max_position_embeddings=4096,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
        **shape,
    )
    config.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    width, wide = shape["hidden_size"], shape["intermediate_size"]
    keys = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    layers = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (keys, width),
        "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (wide, width),
        "mlp.up_proj": (wide, width),
        "mlp.down_proj": (width, wide),
    }

    def drawn(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * 0.02).bfloat16()

    norm = torch.ones(width, dtype=torch.bfloat16)
    hashes: dict[str, str] = {}
    numbers = {"block_weights": sum(rows * columns for rows, columns in layers.values())}
    for index in range(blocks):
        tensors = {f"model.layers.{index}.{name}.weight": drawn(*layers[name]) for name in layers}
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{index}.{name}.weight"] = norm
        _write(folder, f"model-{index + 1:05d}.safetensors", tensors, hashes)
    outside = {"model.norm.weight": norm}
    for name in ("model.embed_tokens", "lm_head"):
        outside[f"{name}.weight"] = drawn(VOCABULARY, width)
    _write(folder, "model-outside.safetensors", outside, hashes)
    write_index(folder, hashes)
    numbers["outside"] = sum(tensor.numel() for tensor in outside.values())
    files = folder.glob("*.safetensors")
    return numbers | {"bytes": sum(path.stat().st_size for path in files)}


def _write(
    folder: Path, name: str, tensors: Mapping[str, torch.Tensor], hashes: dict[str, str]
) -> None:
    hashes[name] = write_tensors(folder / name, tensors)


def _tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, and three special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise, bos_token="<bot>", eos_token="</s>", pad_token="<pad>"
    )


def run(
    model: Path, out: Path, options: list[str], limit: int | None
) -> tuple[dict[str, Any], list[Any]]:
    """`qbench run`, under a limit if any: seconds, peaks in bytes, and the records."""
    command = ["run", "--model", str(model), "--bits", "3", "--group-size", "128"]
    command += ["--tasks", "wikitext,divergence", "--data", "mini", "--dtype", "float32"]
    for name in ("wikitext", "divergence"):
        command += ["--set", f"{name}.limit={WINDOWS}", "--set", f"{name}.length={LENGTH}"]
    command += ["--set", f"calibration.samples={WINDOWS}", "--set", f"calibration.length={LENGTH}"]
    command += ["--no-latency", "--jobs", "1", "--out", str(out), *options]

    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    started = time.perf_counter()
    # Arrow's own allocator takes a gigabyte of addresses at once, which would count.
    variables = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1"}
    variables["PYTHONSAFEPATH"] = "1"  # the root is no place to import from
    process = subprocess.Popen(
        [sys.executable, "-c", START, *command], preexec_fn=limited, env=variables
    )
    peaks = dict.fromkeys(KINDS, 0)
    watching = threading.Thread(target=_watch, args=(process, peaks))
    watching.start()
    process.wait()
    watching.join()
    seconds = time.perf_counter() - started
    records = read_records(out)[0] if out.is_dir() else []
    told = {"command": " ".join(options), "seconds": round(seconds), "peak_bytes": peaks}
    return told, records


def _watch(process: subprocess.Popen[bytes], peaks: dict[str, int]) -> None:
    """Keep the largest sizes of any process of a run."""
    while process.poll() is None:
        try:
            family = [process.pid]
            family += [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        except psutil.Error:
            family = []
        for number in family:
            try:
                status = Path(f"/proc/{number}/status").read_text()
            except OSError:  # it has just ended
                continue
            for kind, key in KINDS.items():
                size = re.search(rf"{key}:\s*(\d+) kB", status)
                if size:
                    peaks[kind] = max(peaks[kind], 1024 * int(size[1]))
        time.sleep(LOOK)


def _outcome(record: Any, blocks: int) -> dict[str, Any]:
    """What is kept of a record."""
    kept: dict[str, Any] = {"status": record.status, "reason": record.reason}
    if record.status == "ok":
        kept["scores"] = {f"{score.task}/{score.metric}": score.value for score in record.scores}
        kept["evaluate_seconds_per_block"] = record.evaluate_seconds / blocks
        kept["quantize_seconds_per_block"] = record.quantize_seconds / blocks
        if record.quantize_peak_bytes:
            kept["quantize_peak_bytes"] = record.quantize_peak_bytes
    return kept


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The whole comparison."""
    limit = bytes_of(args.limit)
    model = folder / "model"
    model.mkdir(parents=True)
    described = write_model(model, args.blocks) | {"blocks": args.blocks}
    methods = ["--methods", f"none,{args.methods}"]
    for setting in args.set or []:
        methods += ["--set", setting]
    stages = {
        "whole": (["--memory", "1TB"], limit),
        "block by block": ([], limit),
    }
    if args.compare:
        stages["whole, without a limit"] = (["--memory", "1TB"], None)
    results: dict[str, Any] = {}
    scores = {}
    for name, (options, most) in stages.items():
        told, records = run(model, folder / name.replace(" ", "-"), [*methods, *options], most)
        of_cells = {record.cell.method: _outcome(record, args.blocks) for record in records}
        results[name] = told | {"limit": most, "cells": of_cells}
        scores[name] = {method: cell.get("scores") for method, cell in of_cells.items()}
    results["equal"] = None
    if args.compare:
        results["equal"] = scores["block by block"] == scores["whole, without a limit"]
    return {"model": described, "limit": limit, "kind": "RLIMIT_DATA", **results}


def main() -> None:
    """Measure, print, and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", default="1GB")
    parser.add_argument("--blocks", type=int, default=48)
    parser.add_argument("--methods", default="rtn")
    parser.add_argument("--set", action="append")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--folder", type=Path, help="Where there is room; it must not be there.")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qbench-large-") as scratch:
        results = measure(args, args.folder or Path(scratch) / "work")
    results["environment"] = environment()
    text = json.dumps(results, indent=1)
    print(text)
    write_text(args.json, text + "\n")


if __name__ == "__main__":
    main()
