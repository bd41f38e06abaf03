"""The command `qbench doctor`: what there is on this machine, and what to do about the rest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import typer

from qbench.commands.options import say
from qbench.commands.tables import show_table
from qbench.errors import QbenchError, reason_of

ROOM = 10e9  # bytes on the disk that a run of a small model stays far below
HUB_SECONDS = 5.0  # that the hub has for an answer

app = typer.Typer()


@app.command()
def doctor() -> None:
    """What this machine can do, and what to do about the rest: data, hub, disks, GPU, kernels."""
    from qbench.commands.listing import listing
    from qbench.environment import environment

    facts = environment()
    for title in ("hardware", "packages"):
        values = "  ".join(f"{key}={value}" for key, value in facts[title].items())
        say(f"{title}  {values}")
    for finding in findings():
        say(f"{finding.what}  {finding.state}")
        if finding.advice:
            say(f"  -> {finding.advice}")
    columns, rows = listing("kernels")
    show_table(columns, rows, sentences=columns[1:])


class Finding(NamedTuple):
    """One line of `qbench doctor`.

    what: was looked at. state: how it is. advice: what to do, empty where nothing is to be done.
    """

    what: str
    state: str
    advice: str = ""


def findings() -> Iterator[Finding]:
    """Data, the hub, disks, the GPU, what methods and kernels need, other programs."""
    looks: list[Callable[[], Iterator[Finding]]] = [
        _data,
        _hub,
        _disks,
        _gpu,
        _methods,
        _kernels,
        _peers,
    ]
    for look in looks:
        try:
            yield from look()
        except Exception as error:  # of any library: the others are looked at
            yield Finding(look.__name__.strip("_"), f"cannot be told: {reason_of(error)}")


def _data() -> Iterator[Finding]:
    from qbench.tasks.data import open_source, tables

    fetch = "`qbench data fetch DIR` makes a folder of the real data; then export QBENCH_DATA=DIR"
    named = os.environ.get("QBENCH_DATA")
    if not named:
        yield Finding("data", "QBENCH_DATA is not set: --data auto takes the mini stand-ins", fetch)
        return
    try:
        source = open_source("auto")
    except QbenchError as error:
        yield Finding("data", str(error), fetch)
        return
    missing = [name for name in tables() if not source.splits(name)]
    lacks = f"it has no {', '.join(missing)}; {fetch}" if missing else ""
    yield Finding("data", f"QBENCH_DATA={named}, {len(tables()) - len(missing)} tables", lacks)


def _hub() -> Iterator[Finding]:
    from huggingface_hub import HfApi

    try:
        HfApi().model_info("openai-community/gpt2", timeout=HUB_SECONDS)
    except Exception as error:  # the hub and its client have no common root
        yield Finding(
            "hub",
            f"does not answer ({type(error).__name__})",
            "models and data must be in folders or in the local cache; smollm2-135m and the mini "
            "data need no hub",
        )
        return
    yield Finding(
        "hub", "answers", "models behind a licence, such as llama3-8b, need `hf auth login`"
    )


def _disks() -> Iterator[Finding]:
    from qbench.embedded import cache_folder

    for what, folder in (("disk here", Path.cwd()), ("disk of the cache", cache_folder())):
        place = folder
        while not place.exists():
            place = place.parent
        free = shutil.disk_usage(place).free
        tight = "a run keeps every quantized model: free some, or give --out" if free < ROOM else ""
        yield Finding(what, f"{free / 1e9:.0f} GB free ({folder})", tight)


def _gpu() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding(
            "gpu", "none that torch sees", "runs are on the processor, with the preset quick"
        )
        return
    free, total = torch.cuda.mem_get_info()
    name = torch.cuda.get_device_name()
    yield Finding("gpu", f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free")


def _methods() -> Iterator[Finding]:
    from qbench.methods.native.loops import unavailable

    reason = unavailable()
    slow = "" if reason is None else "methods compute the same in torch, gptq in twice the time"
    yield Finding("loops of methods", reason or "in C", slow)


def _kernels() -> Iterator[Finding]:
    from qbench.kernels.registry import all_kernels

    install = "`make setup` builds or installs what they need"
    for name, kernel in all_kernels().items():
        reason = kernel.available()
        yield Finding(f"kernel {name}", reason or "available", install if _own(reason) else "")


def _own(reason: str | None) -> bool:
    """Whether something can be done about a kernel: a GPU cannot be installed."""
    return reason is not None and "no GPU" not in reason


def _peers() -> Iterator[Finding]:
    from qbench.latency.peers import peers
    from qbench.latency.timing import Shape

    candidates, missing = peers(Shape(256, 256, 1))
    names = ", ".join(dict.fromkeys(candidate.name for candidate in candidates)) or "none"
    yield Finding("other programs", f"timed by `qbench latency` beside ours: {names}")
    for name, reason in missing.items():
        yield Finding(f"other program {name}", reason, "it is optional")
