"""What one block costs that is read, quantized, written and computed on its own, on a CPU.

`python benchmarks/block_costs.py [--shape 1B] [--methods rtn,gptq]`

Each method has a process of its own, with a random model of one block, of the shape of a Llama 3.2
1B or a Llama 3 8B, in bfloat16, and next to no vocabulary. Seconds are of the processor, memory is
what the process has of its own, and both are of the block alone: what was there before is taken
off. `benchmarks/projection.py` makes a table of them for whole models.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from large_model import write_model

from qbench import Scheme
from qbench.calibration.spool import spooling
from qbench.calibration.streamed import streamed_logits
from qbench.checkpoint.block_files import BlockFiles, write_block_files
from qbench.checkpoint.paged import open_paged
from qbench.environment import environment
from qbench.files.atomic import write_text
from qbench.models.paging import resident
from qbench.models.source import find_model
from qbench.quantization import quantize
from qbench.registry import get_method

RESULTS = Path(__file__).parent / "results" / "block_costs_cpu.json"
SHAPES = {
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}
SCHEME = Scheme(3, 128)
BATCH, LENGTH = 1, 256
LOOK = 0.02  # seconds


class Peak:
    """The most anonymous memory that this process has while something is done."""

    def __init__(self) -> None:
        self.before = _anonymous()
        self.most = self.before
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(LOOK):
            self.most = max(self.most, _anonymous())


def _anonymous() -> int:
    size = re.search(r"RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert size is not None
    return 1024 * int(size[1])


def costs(folder: Path, method: str, scratch: Path) -> dict[str, Any]:
    """Of one block: processor seconds to read it, to quantize and write it, and to pass a token
    through it, and bytes at the peak of each.
    """
    source = find_model(str(folder))
    model = open_paged(source, "float32").model
    (block,) = model.model.layers
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 256, (BATCH, LENGTH), generator=generator)
    with torch.no_grad():
        block(torch.zeros(1, 1, model.config.hidden_size), position_embeddings=_angles(model))
    told: dict[str, Any] = {}

    def measured(name: str, work: Any) -> None:
        started = time.process_time()
        with Peak() as peak:
            work()
        told[f"{name}_seconds"] = round(time.process_time() - started, 3)
        told[f"{name}_bytes"] = peak.most - peak.before

    def read() -> None:
        with resident(block):
            pass

    def passed() -> None:
        list(streamed_logits(model, tokens, BATCH))

    def quantized(files: BlockFiles) -> None:
        made = quantize(model, get_method(method), SCHEME, tokens, files=files)
        files.finish(model, None, made.weights, made.manifest, made.log)

    with spooling(scratch, room=0):
        measured("read", read)
        measured("judge", passed)
        measured("quantize", lambda: write_block_files(scratch / "out", quantized))
    return told | {"tokens": tokens.numel()}


def _angles(model: Any) -> Any:
    return model.model.rotary_emb(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long))


def main() -> None:
    """Measure in processes of their own, print, and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="1B", choices=SHAPES)
    parser.add_argument("--methods", default="rtn,gptq")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        method, place = args.one
        print(json.dumps(costs(Path(place) / "model", method, Path(place) / method)))
        return
    with tempfile.TemporaryDirectory(prefix="qbench-block-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        described = write_model(folder, 1, SHAPES[args.shape])
        methods = {}
        for method in args.methods.split(","):
            (Path(scratch) / method).mkdir()
            command = [sys.executable, __file__, "--one", method, scratch]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(done.stderr)
            methods[method] = json.loads(done.stdout.splitlines()[-1])
    results = {"model": described, "bits": SCHEME.bits, "group_size": SCHEME.group_size}
    results |= {"methods": methods, "environment": environment()}
    text = json.dumps(results, indent=1)
    print(text)
    write_text(args.json, text + "\n")


if __name__ == "__main__":
    main()
