"""Damaged models, records, grids and data.

    PYTHONPATH=benchmarks python -P -m fuzz [--cases 20000] [--first 0] [--seed 0] [--json FILE]

Folders of ours, of GPTQ and of AWQ, GGUF files, folders of records, grid files and data folders are
damaged: by what they are made of (numbers, types, shapes, offsets, names, links, missing files),
and blindly (flips, cuts). A case has 2 s of processor time and 1 GB, in a forked process. There a
command of `COMMANDS` must do its work or raise one of the project's errors. A model that was loaded
must be the undamaged one, or `verify` must find the damage. A case that did anything else is
repeated in a process of its own, and printed if it does so again: exit code 1.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import io
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from transformers.utils import logging

from fuzz.damage import damage
from fuzz.originals import originals
from qbench.commands.main import app
from qbench.environment import environment
from qbench.errors import QbenchError
from qbench.experiment.grid import Grid
from qbench.files.shards import INDEX
from qbench.files.written_folder import CARD, verify
from qbench.models.source import find_model
from qbench.quantization import read_model

SECONDS = 2.0  # of processor time that a case may take
BYTES = 1 << 30  # that a case may take beyond what it starts with
REPORTED = 200  # cases between two lines of progress
TOGETHER = 20  # cases in one process: forking costs as much as one does
FINE = ("done", "refused")
# What is done with a folder, by its name; `load` is no command, but how `eval` and `run` begin.
COMMANDS = {
    "records": ("report", "report", "gc"),
    "grids": ("dry-run",),
    "data": ("data",),
    "gguf": ("inspect",),
    "gguf-model": ("load", "load", "inspect", "plan"),
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


QBENCH = typer.main.get_command(app)  # made once, as it takes longer than most cases


@dataclass(frozen=True)
class Result:
    """What a case did: a word, what was done and said, processor seconds, and bytes beyond those
    that it started with.
    """

    number: int
    word: str
    text: str
    seconds: float = 0.0
    grown: int = 0


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
                QBENCH(_arguments(folder, command), standalone_mode=False)
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


@dataclass(frozen=True)
class Cases:
    """What every case is made from. models: the originals with the hashes of their weights."""

    seed: int
    models: dict[Path, str]
    scratch: Path

    def run(self, number: int) -> Result:
        """Run one case in this process, which is bounded; it may not come back."""
        rng = random.Random(f"{self.seed} {number}")
        original = rng.choice(list(self.models))
        folder = self.scratch / f"case-{number}"
        shutil.rmtree(folder, ignore_errors=True)  # of a try that did not come back
        shutil.copytree(original, folder)
        done = damage(folder, rng)
        command = rng.choice(COMMANDS.get(original.name, OF_MODELS))
        changed = command == "load" and _differ(folder, original)
        with bounded() as took:
            word, message = outcome(folder, command, self.models[original], changed)
        for path in (folder, self.scratch / "out"):
            shutil.rmtree(path, ignore_errors=True)
        seconds, grown = took()
        if word in FINE and seconds > SECONDS:
            word = "slow"
        elif word in FINE and grown > BYTES:
            word = "large"
        return Result(
            number, word, f"{command} of {original.name}, {done}: {message}", seconds, grown
        )

    def run_apart(self, numbers: Sequence[int]) -> Iterator[Result]:
        """Run cases in one forked process, and those after one that ended it in another."""
        left = list(numbers)
        while left:
            reading, writing = os.pipe()
            child = os.fork()
            if not child:
                os.close(reading)
                try:
                    for number in left:
                        line = json.dumps(asdict(self.run(number)))
                        os.write(writing, f"{line}\n".encode())
                finally:
                    os._exit(0)  # before the way out removes what is of the parent
            os.close(writing)
            for line in _lines(reading, child):
                result = Result(**json.loads(line))
                left.remove(result.number)
                yield result
            status = os.waitpid(child, 0)[1]
            if left:
                yield Result(left.pop(0), "died", f"status {status}")


def _lines(reading: int, child: int) -> Iterator[bytes]:
    """The lines that a child writes; it is ended where none comes for two minutes."""
    pending = b""
    while True:
        if not select.select([reading], [], [], 120)[0]:
            os.kill(child, signal.SIGKILL)
        piece = os.read(reading, 1 << 16)
        if not piece:
            os.close(reading)
            return
        *lines, pending = (pending + piece).split(b"\n")
        yield from lines


@contextmanager
def bounded() -> Iterator[Callable[[], tuple[float, int]]]:
    """Bound what this process may take from here on; tells processor seconds and bytes, so far."""
    pages, resident = map(int, Path("/proc/self/statm").read_text().split()[:2])
    page = resource.getpagesize()
    before = _seconds()
    largest_child = _largest_child()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    resource.setrlimit(resource.RLIMIT_AS, (pages * page + BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(before) + 6, resource.RLIM_INFINITY))

    def took() -> tuple[float, int]:
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
        others = _largest_child()
        # Linux counts what a process has when it starts another one as the other's, too.
        own = others if others > max(peak, largest_child) else 0
        return _seconds() - before, max(peak - resident * page, own)

    try:
        yield took
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _largest_child() -> int:
    """The peak of the largest process that this one has waited for, in bytes."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _seconds() -> float:
    """Processor seconds of this process and of those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def warmed_up(scratch: Path) -> dict[Path, str]:
    """The originals with the hashes of their weights. Imports and caches are paid here."""
    find_model(Grid().model[0])  # which a grid that names no model takes, and is converted once
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


def run_all(cases: Cases, numbers: range) -> list[Result]:
    """Run cases in turn, and print what went wrong; what did is repeated alone, and that counts."""
    results: list[Result] = []
    for start in range(0, len(numbers), TOGETHER):
        for result in list(cases.run_apart(numbers[start : start + TOGETHER])):
            if result.word not in FINE:
                (result,) = cases.run_apart([result.number])
            results.append(result)
            if result.word not in FINE:
                print(_sentence(result), flush=True)
        if len(results) % REPORTED < TOGETHER:
            print(f"{len(results)} of {len(numbers)}", file=sys.stderr, flush=True)
    return results


def _sentence(result: Result) -> str:
    text = f"case {result.number} {result.word} ({result.seconds:.1f} s): {result.text[:500]}"
    return text.encode("ascii", "backslashreplace").decode()


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
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["QBENCH_CACHE"] = str(scratch / "cache")
        cases = Cases(args.seed, warmed_up(scratch / "originals"), scratch)
        gc.collect()
        gc.freeze()  # looking for garbage would write to every page that is shared
        results = run_all(cases, range(args.first, args.first + args.cases))
    counts = Counter(result.word for result in results)
    slowest = max(result.seconds for result in results)
    largest = max(result.grown for result in results)
    wrong = [_sentence(result) for result in results if result.word not in FINE]
    print(f"{len(results)} cases: {dict(counts)}; slowest {slowest:.2f} s, largest "
          f"{largest / 1e6:.0f} MB; {len(wrong)} wrong")  # fmt: skip
    if args.json:
        facts = {
            "cases": args.cases,
            "first": args.first,
            "seed": args.seed,
            "outcomes": counts,
            "slowest_seconds": slowest,
            "largest_bytes": largest,
            "wrong": wrong,
            "environment": environment(),
        }
        args.json.write_text(json.dumps(facts, indent=2) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
