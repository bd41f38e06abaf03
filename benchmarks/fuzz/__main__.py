"""Damaged models, records, grids and data.

    PYTHONPATH=benchmarks python -P -m fuzz [--cases 20000] [--first 0] [--seed 0] [--json FILE]

Folders of ours, of GPTQ and of AWQ, GGUF files, folders of records, grid files and data folders are
damaged: by what they are made of (numbers, types, shapes, offsets, names, links, missing files),
and blindly (flips, cuts). Each case is a forked process with 2 s of processor time and 1 GB beyond
what it starts with. There a command of `COMMANDS` must do its work or raise one of the project's
errors. A model that was loaded must be the undamaged one, or `verify` must find the damage. Exit
code 1 where a case did anything else; it is printed, and can be repeated from its number alone.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from fuzz.damage import damage
from fuzz.originals import originals
from qbench.commands.main import app
from qbench.environment import environment
from qbench.errors import QbenchError
from qbench.files.shards import CARD, INDEX, verify
from qbench.models.source import find_model
from qbench.quantization import read_model

SECONDS = 2.0  # of processor time that a case may take
BYTES = 1 << 30  # that a case may take beyond what it starts with
REPORTED = 200  # cases between two lines of progress
# What is done with a folder, by its name; `load` is no command, but how `eval` and `run` begin.
COMMANDS = {
    "records": ("report", "report", "gc"),
    "grids": ("dry-run",),
    "data": ("data",),
    "gguf": ("inspect",),
    "dense": ("load", "load", "load", "inspect", "verify", "plan"),
}
OF_MODELS = ("load", "load", "load", "inspect", "verify", "plan", "export")
ARGUMENTS: dict[str, tuple[str, ...]] = {
    "report": ("report", "{folder}"),
    "gc": ("gc", "{folder}", "--delete"),
    "verify": ("verify", "{folder}"),
    "inspect": ("inspect", "{folder}"),
    "export": ("export", "{folder}", "--to", "dense", "-o", "{out}", "--no-verify"),
    "data": ("data", "list", "--data", "{folder}"),
    "dry-run": ("run", "--config", "{folder}/grid.yaml", "--dry-run"),
    "plan": (
        *("run", "--model", "{folder}", "--methods", "none", "--tasks", "wikitext"),
        *("--data", "mini", "--dtype", "float32", "--dry-run"),
    ),
}


@dataclass
class Usage:
    """What a case took: processor seconds, and bytes beyond those that it started with."""

    seconds: float
    grown: int


def fingerprint(model: Any) -> str:
    """A hash of all weights, dequantized."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()


def outcome(folder: Path, command: str, weights: str, changed: bool = False) -> tuple[str, str]:
    """(word, message): `done` or `refused`, else what is wrong.

    weights: of the undamaged model. changed: whether a file that has a hash was.
    """
    silent = io.StringIO()
    try:
        with redirect_stdout(silent), redirect_stderr(silent), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if command != "load":
                app(_arguments(folder, command), standalone_mode=False)
                return "done", ""
            model = read_model(find_model(str(folder)), "float32").model
            if (changed or fingerprint(model) != weights) and not _found(folder):
                return "unnoticed", "the folder is another one"
    except QbenchError as error:
        return "refused", str(error)
    except BaseException as error:  # whatever it is, it is what this looks for
        lines = traceback.extract_tb(error.__traceback__)
        place = next((line for line in reversed(lines) if "qbench" in line.filename), lines[-1])
        return "crashed", f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    return "done", ""


def _arguments(folder: Path, command: str) -> list[str]:
    """What is typed after `qbench`."""
    place = folder / "model.gguf"
    if not (command == "inspect" and place.exists()):
        place = folder
    out = folder.parent / "out"
    return [part.format(folder=place, out=out) for part in ARGUMENTS[command]]


def _found(folder: Path) -> bool:
    """Whether verifying finds a change. That it has nothing to verify by is no finding."""
    try:
        return any(verify(folder).values())
    except QbenchError:
        return not (folder / INDEX).is_file()


def _differ(folder: Path, original: Path) -> bool:
    """Whether two folders differ in a file whose hash stands in an index."""
    if not (original / INDEX).is_file():
        return False
    return _content(folder) != _content(original)


def _content(folder: Path) -> dict[str, bytes | None]:
    """The bytes of every file that a damage can have changed, None for what is no file."""
    content = {}
    for path in sorted(folder.rglob("*")):
        if path.name not in (CARD, INDEX):
            plain = path.is_file() and not path.is_symlink()
            content[str(path.relative_to(folder))] = path.read_bytes() if plain else None
    return content


def one_case(
    number: int, seed: int, models: dict[Path, str], scratch: Path
) -> tuple[str, str, Usage]:
    """(outcome, what was done and said, what it took)."""
    rng = random.Random(f"{seed} {number}")
    original = rng.choice(list(models))
    folder = scratch / "case"
    shutil.copytree(original, folder)
    done = damage(folder, rng)
    command = rng.choice(COMMANDS.get(original.name, OF_MODELS))
    changed = command == "load" and _differ(folder, original)
    answer = scratch / "answer"
    answer.unlink(missing_ok=True)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _limit(writing)
        answer.write_text(json.dumps(outcome(folder, command, models[original], changed)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        before = int(pipe.readline())
    status, usage = _wait(child)
    word, message = "died", f"status {status}"
    if answer.is_file():
        word, message = json.loads(answer.read_text())
    for path in (folder, scratch / "out"):
        shutil.rmtree(path, ignore_errors=True)
    took = Usage(usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 - before)
    if word in ("done", "refused"):
        word = "slow" if took.seconds > SECONDS else "large" if took.grown > BYTES else word
    return word, f"{command} of {original.name}, {done}: {message}", took


def _limit(writing: int) -> None:
    """In the child: bound what it may take, and tell how large it is at its start."""
    pages, resident = map(int, Path("/proc/self/statm").read_text().split()[:2])
    page = resource.getpagesize()
    os.write(writing, f"{resident * page}\n".encode())
    os.close(writing)
    resource.setrlimit(resource.RLIMIT_AS, (pages * page + BYTES, pages * page + BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (5, 6))


def _wait(child: int) -> tuple[int, Any]:
    """Status and usage of a child, which is ended where it waits for two minutes."""
    deadline = time.monotonic() + 120
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage
        if time.monotonic() > deadline:
            os.kill(child, 9)
            deadline = float("inf")
        time.sleep(0.002)


def warmed_up(scratch: Path) -> dict[Path, str]:
    """The originals with the hashes of their weights. Imports and caches are paid here."""
    models = dict.fromkeys(originals(scratch), "")
    for folder in models:
        commands = dict.fromkeys(COMMANDS.get(folder.name, OF_MODELS))
        if "load" in commands:
            models[folder] = fingerprint(read_model(find_model(str(folder)), "float32").model)
        for command in commands:
            word, message = outcome(folder, command, models[folder])
            if word != "done":
                raise SystemExit(f"{command} of the undamaged {folder.name}: {word}, {message}")
            shutil.rmtree(scratch / "out", ignore_errors=True)
    return models


def main() -> int:
    """Run the cases and print what happened; 1 where a case did what it must not."""
    parser = argparse.ArgumentParser("fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    most = Usage(0.0, 0)
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["QBENCH_CACHE"] = str(scratch / "cache")
        models = warmed_up(scratch / "originals")
        for number in range(args.first, args.first + args.cases):
            word, text, took = one_case(number, args.seed, models, scratch)
            counts[word] += 1
            most = Usage(max(most.seconds, took.seconds), max(most.grown, took.grown))
            if word not in ("done", "refused"):
                wrong.append(f"case {number} {word} ({took.seconds:.1f} s): {text[:500]}")
                print(wrong[-1].encode("ascii", "backslashreplace").decode(), flush=True)
            if (number - args.first) % REPORTED == REPORTED - 1:
                print(f"{number - args.first + 1} of {args.cases}", file=sys.stderr, flush=True)
    print(f"{args.cases} cases: {dict(counts)}; slowest {most.seconds:.2f} s, largest "
          f"{most.grown / 1e6:.0f} MB; {len(wrong)} wrong")  # fmt: skip
    if args.json:
        facts = {
            "cases": args.cases,
            "first": args.first,
            "seed": args.seed,
            "outcomes": counts,
            "slowest_seconds": most.seconds,
            "largest_bytes": most.grown,
            "wrong": wrong,
            "environment": environment(),
        }
        args.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
