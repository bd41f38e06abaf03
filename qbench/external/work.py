"""A worker at work in its package's environment: what it is told, and what it hands back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from qbench.errors import MethodError, ending_of, readable
from qbench.external.contract import Order, Package
from qbench.external.environments import clean_variables, python_of
from qbench.external.packages import protocol, worker

POLL = 0.2  # seconds between two looks at a worker
FOLDER, FILE = "checkpoint", "checkpoint.gguf"  # one of which it writes
DEQUANTIZED, CODES = "dequantized.safetensors", "codes.safetensors"
_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b")  # at a line's beginning
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Result(BaseModel):
    """What a worker says in the end.

    seconds, peak_bytes: of quantizing, without loading and saving where the package tells them
    apart. settings: what the package was asked for, in its own words.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: NonNegative
    peak_bytes: Annotated[int, Field(ge=0)]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What lies in the output folder of a worker that has done its work.

    checkpoint: the package's own folder or file. dequantized, codes: files of `worker_files.py`,
    None where it left none.
    """

    result: Result
    checkpoint: Path
    dequantized: Path | None
    codes: Path | None


def work(
    package: Package,
    settings: Mapping[str, Any],
    model: Path,
    tokens: Tensor | None,
    place: Path,
    *,
    device: str,
    threads: int,
    waiting: Callable[[], None] = lambda: None,
) -> Written:
    """Let the worker of an installed package quantize a model's folder.

    tokens: (samples, length) int64. place: an empty folder for what is handed over. waiting: called
    now and then. What the worker prints is printed here when it has ended.

    MethodError with its last words where it fails, ends early, or leaves nothing or something else.
    """
    output = place / "output"
    output.mkdir()
    path = None
    if tokens is not None:
        path = place / "tokens.npy"
        np.save(path, tokens.cpu().numpy())
    order = Order(
        model=str(model.absolute()),
        tokens=None if path is None else str(path),
        output=str(output),
        settings=settings,
        device=device,
        threads=threads,
    )
    (place / "order.json").write_text(json.dumps(asdict(order)))
    said = place / "said.txt"
    code = _run(package, place, said, threads, waiting)
    _print(said)
    if code:
        raise MethodError(f"{package.name} {ending_of(code)}{_last_words(said)}")
    return read_written(package, output)


def read_written(package: Package, output: Path) -> Written:
    """What lies in the output folder of a worker; MethodError where it is not what should."""
    try:
        result = Result.model_validate_json((output / "result.json").read_bytes())
    except FileNotFoundError:
        raise MethodError(f"{package.name} ended without a word, and left no result.json") from None
    except (ValidationError, ValueError, OSError) as error:
        raise MethodError(f"{package.name} left a result.json that is damaged: {error}") from None
    there = [output / name for name in (FOLDER, FILE) if (output / name).exists()]
    filled = [path for path in there if path.is_file() or any(path.iterdir())]
    if not filled:
        raise MethodError(f"{package.name} says that it is done, and wrote no checkpoint")
    return Written(result, filled[0], _if_there(output / DEQUANTIZED), _if_there(output / CODES))


def _run(
    package: Package, place: Path, said: Path, threads: int, waiting: Callable[[], None]
) -> int:
    """Start the worker and wait for it; its exit code. It ends with this process's group."""
    words = [str(python_of(package)), "-s", str(worker(package)), str(place / "order.json")]
    with said.open("wb") as output:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=place,
            env=_variables(place, threads),
        )
    try:
        while process.poll() is None:
            waiting()
            time.sleep(POLL)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return process.returncode


def _variables(place: Path, threads: int) -> dict[str, str]:
    """Of the worker's environment: nothing is downloaded, and its files go into its own place."""
    variables = clean_variables()
    for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        variables[key] = str(threads)
    return variables | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(protocol().parent),  # alone: nothing of ours but the protocol
        "TMPDIR": str(place),
    }


def _print(said: Path) -> None:
    """Into the log of the cell."""
    with suppress(OSError):
        sys.stdout.write(said.read_text(errors="replace"))
        sys.stdout.flush()


def _last_words(said: Path) -> str:
    """What Python says was raised, which may take several lines, or the last line printed."""
    lines = said.read_bytes()[-10_000:].decode(errors="replace").splitlines()
    words = [line for line in lines if line.strip()]
    raised = [i for i, line in enumerate(words) if _RAISED.match(line)]
    last = words[raised[-1] :] if raised else words[-1:]
    text = " ".join(line.strip() for line in last)
    return readable(f"; it last said: {text}") if text else ""


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None
