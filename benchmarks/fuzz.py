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

SECONDS, BYTES = 2.0, 1 << 30
METHODS = {"rtn": {}, "alternating": {}, "unisvq": {"epochs": 0}}
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
    found = []
    for name, settings in METHODS.items():
        torch.manual_seed(0)
        made = qbench.quantize(
            LlamaForCausalLM(config), qbench.get_method(name, **settings), Scheme(3, 16), tokens
        )
        for limit in (10**9, 20_000):
            path = folder / f"{name}-{limit}"
            save_checkpoint(
                path, made.model, tokenizer, made.weights, made.manifest, {}, shard_bytes=limit
            )
            found.append(path)
    return found


def flip(raw: bytearray, rng: random.Random) -> None:
    """A few bytes take other values."""
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        raw[rng.randrange(_reach(raw, rng))] ^= rng.randrange(1, 256)


def cut(raw: bytearray, rng: random.Random) -> None:
    """The end, or a piece, is missing."""
    start = rng.randrange(_reach(raw, rng))
    del raw[start : rng.choice([len(raw), start + rng.randrange(1, 64)])]


def swap(raw: bytearray, rng: random.Random) -> None:
    """Two pieces change places."""
    size = rng.randrange(1, max(2, min(256, len(raw) // 3)))
    one, other = (rng.randrange(max(1, len(raw) - size)) for _ in range(2))
    raw[one : one + size], raw[other : other + size] = (
        raw[other : other + size],
        raw[one : one + size],
    )


def inflate(raw: bytearray, rng: random.Random) -> None:
    """Bytes are inserted, or a declared length grows."""
    if rng.random() < 0.3:
        raw[:8] = rng.choice([2**63, 2**40, 10**8, len(raw) * 2, rng.randrange(1, 10**6)]).to_bytes(
            8, "little"
        )
    else:
        start = rng.randrange(_reach(raw, rng))
        raw[start:start] = rng.choice(
            [b"[" * 100_000, b"9" * 50, b'"' * 3, bytes(rng.randrange(1, 10_000))]
        )


def rewrite(raw: bytearray, rng: random.Random) -> None:
    """One entry of a JSON document becomes another, disappears, or is there twice."""
    start = 0 if raw[:1] in b"{[" else 8
    end = len(raw) if not start else 8 + int.from_bytes(raw[:8], "little")
    document = json.loads(raw[start:end])
    spot: Any = document
    while True:
        keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
        key = rng.choice(keys)
        if not isinstance(spot[key], dict | list) or not spot[key] or rng.random() < 0.1:
            break
        spot = spot[key]
    change = rng.random()
    if change < 0.2:
        del spot[key]
    elif change < 0.3 and isinstance(spot, list):
        spot.append(spot[key])
    elif change < 0.5 and isinstance(spot[key], int):
        spot[key] = spot[key] * rng.choice([-1, 2, 1000, 10**9]) + rng.randrange(2)
    else:
        spot[key] = rng.choice(VALUES)
    text = json.dumps(document).encode()
    raw[:end] = (len(text).to_bytes(8, "little") if start else b"") + text


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
    """Change one file; returns what was done."""
    files = sorted(path for path in folder.iterdir() if path.name != CARD)
    likely = [path for path in files if path.name == "config.json" or "model" in path.name]
    path = rng.choice(rng.choice([files, likely, likely]))
    before = path.read_bytes()
    if rng.random() < 0.05:
        other = rng.choice(files)
        path.write_bytes(other.read_bytes())
        return f"{path.name} has the content of {other.name}" if path.read_bytes() != before else ""
    change, raw = rng.choice(CHANGES), bytearray(before)
    if change is not rewrite or path.suffix in (".json", ".safetensors"):
        change(raw, rng)
    path.write_bytes(raw)
    return f"{change.__name__} in {path.name}" if raw != before else ""


def outcome(folder: Path) -> tuple[str, str]:
    """What loading did: a word, and the message."""
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
    if word == "unnoticed" and (
        not done or "index.json" in done
    ):  # nothing changed, or only what states the hashes
        word = "loaded"
    if seconds > SECONDS and word != "crashed":
        word = "slow"
    return word, f"{done}: {message}", seconds


def main() -> int:
    """Run the cases, print what happened."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    counts, slowest, bad = Counter[str](), 0.0, []
    with tempfile.TemporaryDirectory() as name:
        folders = originals(Path(name))
        for folder in folders:
            qbench.load(folder)  # imports and caches are paid before the limit is set
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
        for number in range(args.first, args.first + args.cases):
            word, text, seconds = one_case(number, args.seed, folders, Path(name))
            counts[word] += 1
            slowest = max(slowest, seconds)
            if word not in ("loaded", "refused"):
                bad.append(f"case {number} {word} ({seconds:.1f} s): {text[:400]}")
                print(bad[-1], flush=True)
    print(f"{args.cases} cases: {dict(counts)}; slowest {slowest:.2f} s; {len(bad)} wrong")
    if args.json:
        facts = {
            "cases": args.cases,
            "seed": args.seed,
            "outcomes": counts,
            "slowest_seconds": slowest,
            "wrong": bad,
        }
        args.json.write_text(json.dumps(facts | {"environment": environment()}, indent=2) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
