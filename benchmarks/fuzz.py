"""Damaged checkpoints: `python benchmarks/fuzz.py [--cases 10000] [--seed 0] [--json FILE]`.

Bytes and JSON of real folders are flipped, cut, swapped and inflated. In every case `qbench.load`
must either load the folder or raise one of the project's errors, within 2 s of processor time and 1
GB beyond what the process had; and `qbench verify` must find the change. Exit code 1 where a case
did anything else; it is printed, and can be repeated from its number alone.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

import qbench
from qbench import Scheme
from qbench.checkpoint.folder import save_checkpoint
from qbench.environment import environment
from qbench.errors import QbenchError
from qbench.files.shards import CARD, verify

SECONDS = 2.0  # of processor time that a case may take
BYTES = 1 << 30  # that a case may take beyond what the process had
METHODS = {"rtn": {}, "alternating": {}, "unisvq": {"epochs": 0}}  # one per format, no training
SHARD_BYTES = (10**9, 20_000)  # one file, several files
# What an entry of a JSON document becomes: other types, extremes, and empty containers.
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    7,
    2**31,
    2**63,
    10**30,
    1e308,
    "",
    "x",
    "../x",
    "float64",
    [],
    {},
    [[]],
    [0],
]


def originals(folder: Path) -> list[Path]:
    """Small folders in every format, whole and in several files, with a tokenizer."""
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    config = LlamaConfig(**shape, num_hidden_layers=2, vocab_size=64)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:64]
    bpe = BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(bpe))
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    paths = []
    for name, settings in METHODS.items():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        method = qbench.get_method(name, **settings)
        quantized = qbench.quantize(model, method, Scheme(3, 16), tokens)
        for limit in SHARD_BYTES:
            path = folder / f"{name}-{limit}"
            save_checkpoint(
                path,
                quantized.model,
                tokenizer,
                quantized.weights,
                quantized.manifest,
                {},
                shard_bytes=limit,
            )
            paths.append(path)
    return paths


def flip(raw: bytearray, rng: random.Random) -> None:
    """A few bytes take other values."""
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        raw[rng.randrange(_reach(raw, rng))] ^= rng.randrange(1, 256)


def cut(raw: bytearray, rng: random.Random) -> None:
    """The end, or a piece, is missing."""
    start = rng.randrange(_reach(raw, rng))
    end = rng.choice([len(raw), start + rng.randrange(1, 64)])
    del raw[start:end]


def swap(raw: bytearray, rng: random.Random) -> None:
    """Two pieces change places."""
    size = rng.randrange(1, max(2, min(256, len(raw) // 3)))
    last_start = max(1, len(raw) - size)
    first = rng.randrange(last_start)
    second = rng.randrange(last_start)
    first_piece = raw[first : first + size]
    second_piece = raw[second : second + size]
    raw[first : first + size] = second_piece
    raw[second : second + size] = first_piece


def inflate(raw: bytearray, rng: random.Random) -> None:
    """Bytes are inserted, or a declared length grows."""
    if rng.random() < 0.3:
        # a safetensors file begins with the length of its header
        length = rng.choice([2**63, 2**40, 10**8, len(raw) * 2, rng.randrange(1, 10**6)])
        raw[:8] = length.to_bytes(8, "little")
    else:
        start = rng.randrange(_reach(raw, rng))
        zeros = bytes(rng.randrange(1, 10_000))
        raw[start:start] = rng.choice([b"[" * 100_000, b"9" * 50, b'"' * 3, zeros])


def rewrite(raw: bytearray, rng: random.Random) -> None:
    """One entry of a JSON document becomes another, disappears, or is there twice."""
    is_safetensors = raw[:1] not in b"{["  # whose header follows its length, in 8 bytes
    start = 8 if is_safetensors else 0
    end = 8 + int.from_bytes(raw[:8], "little") if is_safetensors else len(raw)
    document = json.loads(raw[start:end])
    container, key = _random_entry(document, rng)
    change = rng.random()
    if change < 0.2:
        del container[key]
    elif change < 0.3 and isinstance(container, list):
        container.append(container[key])
    elif change < 0.5 and isinstance(container[key], int):
        factor = rng.choice([-1, 2, 1000, 10**9])
        container[key] = container[key] * factor + rng.randrange(2)
    else:
        container[key] = rng.choice(VALUES)
    text = json.dumps(document).encode()
    length = len(text).to_bytes(8, "little") if is_safetensors else b""
    raw[:end] = length + text


def _random_entry(document: Any, rng: random.Random) -> tuple[Any, Any]:
    """(the list or dict, the key): mostly a leaf of the document, sometimes a whole branch."""
    container = document
    while True:
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        key = rng.choice(keys)
        value = container[key]
        if not isinstance(value, dict | list) or not value or rng.random() < 0.1:
            return container, key
        container = value


# Rewriting JSON finds the most, so it comes twice as often.
CHANGES: list[Callable[[bytearray, random.Random], None]] = [
    flip,
    cut,
    swap,
    inflate,
    rewrite,
    rewrite,
]


def _reach(raw: bytearray, rng: random.Random) -> int:
    """Up to where bytes change: mostly where the structure is, which is in front."""
    return max(1, min(len(raw), rng.choice([8, 300, 4000, len(raw)])))


def damage(folder: Path, rng: random.Random) -> str:
    """Change one file; returns what was done, or nothing where the file is as it was."""
    files = sorted(path for path in folder.iterdir() if path.name != CARD)
    likely = [path for path in files if path.name == "config.json" or "model" in path.name]
    path = rng.choice(rng.choice([files, likely, likely]))
    before = path.read_bytes()
    if rng.random() < 0.05:
        other = rng.choice(files)
        after = other.read_bytes()
        done = f"{path.name} has the content of {other.name}"
    else:
        change = rng.choice(CHANGES)
        after = bytearray(before)
        if change is not rewrite or path.suffix in (".json", ".safetensors"):
            change(after, rng)
        done = f"{change.__name__} in {path.name}"
    path.write_bytes(after)
    return done if after != before else ""


def outcome(folder: Path) -> tuple[str, str]:
    """(word, message): `refused`, `crashed`, or `loaded` and whether verifying noticed."""
    try:
        qbench.load(folder)
    except QbenchError as error:
        return "refused", str(error)
    except BaseException as error:  # whatever it is, it is what this looks for
        return "crashed", f"{type(error).__name__}: {error}"
    try:
        changed = [name for name, problem in verify(folder).items() if problem]
    except QbenchError as error:
        changed = [str(error)]
    return ("loaded", "") if changed else ("unnoticed", "")


def one_case(number: int, seed: int, folders: list[Path], scratch: Path) -> tuple[str, str, float]:
    """(outcome, what was done and said, seconds)."""
    rng = random.Random(f"{seed} {number}")
    folder = scratch / "case"
    shutil.copytree(rng.choice(folders), folder)
    done = damage(folder, rng)
    started = time.process_time()  # of this process: what else runs on the machine does not count
    word, message = outcome(folder)
    seconds = time.process_time() - started
    shutil.rmtree(folder)
    # verifying need not notice where nothing changed, or only the file that states the hashes
    if word == "unnoticed" and (not done or "index.json" in done):
        word = "loaded"
    if seconds > SECONDS and word != "crashed":
        word = "slow"
    return word, f"{done}: {message}", seconds


def limit_memory() -> None:
    """Let this process take BYTES more than it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    allowed = pages * resource.getpagesize() + BYTES
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


def main() -> int:
    """Run the cases and print what happened; 1 where a case did what it must not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    counts: Counter[str] = Counter()
    slowest = 0.0
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        folders = originals(Path(name))
        for folder in folders:
            qbench.load(folder)  # imports and caches are paid before the limit is set
        limit_memory()
        for number in range(args.first, args.first + args.cases):
            word, text, seconds = one_case(number, args.seed, folders, Path(name))
            counts[word] += 1
            slowest = max(slowest, seconds)
            if word not in ("loaded", "refused"):
                line = f"case {number} {word} ({seconds:.1f} s): {text[:400]}"
                wrong.append(line)
                print(line, flush=True)
    print(f"{args.cases} cases: {dict(counts)}; slowest {slowest:.2f} s; {len(wrong)} wrong")
    if args.json:
        facts = {
            "cases": args.cases,
            "seed": args.seed,
            "outcomes": counts,
            "slowest_seconds": slowest,
            "wrong": wrong,
            "environment": environment(),
        }
        args.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
