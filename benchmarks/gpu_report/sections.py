"""Sections one after the other, each in a process of its own, and one JSON file that grows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from qbench.errors import ConfigError, unknown_name
from qbench.files.atomic import write_text

SECTIONS = {  # in this order: what is tuned is timed; seconds after which a section is ended
    "correctness": 75.0,
    "dispatch": 60.0,
    "tune": 120.0,
    "latency": 120.0,
    "peers": 150.0,
    "training": 120.0,
    "pipeline": 90.0,
    "end_to_end": 90.0,
}


def limits_of(names: str, changes: str = "") -> dict[str, float]:
    """The sections of a list with commas, in their own order, each with its limit in seconds.

    changes: such as `correctness=40,latency=60`. ConfigError for a section that does not exist, and
    for a limit that is no positive number.
    """
    limits = dict(SECTIONS)
    for change in filter(None, changes.split(",")):
        name, _, number = change.partition("=")
        _require(name)
        try:
            limits[name] = float(number)
        except ValueError:
            limits[name] = 0.0
        if not limits[name] > 0:
            raise ConfigError(f"the limit {change!r} is no number of seconds; give {name}=60, say")
    wanted = names.split(",")
    for name in wanted:
        _require(name)
    return {name: limit for name, limit in limits.items() if name in wanted}


def report(
    limits: Mapping[str, float],
    command: Sequence[str],
    path: Path,
    facts: Mapping[str, Any],
    quick: Sequence[str] = (),
) -> list[str]:
    """Run the sections, with the file at `path` whole after each of them; those that failed.

    limits: of each section, in seconds. command: runs the section that `--part NAME --json FILE
    --seconds LIMIT` names, and `--quick` after it for those in `quick`. facts: what the file tells
    beside the sections.
    """
    stored: dict[str, Any] = {**facts, "sections": {}}
    store(path, stored)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name, limit in limits.items():
            part = Path(folder) / f"{name}.json"
            own = [*command, "--part", name, "--json", str(part), "--seconds", str(limit)]
            own += ["--quick"] if name in quick else []
            print(f"--- {name}", flush=True)
            outcome = run_section(own, part, limit)
            print(f"--- {name}: {outcome['status']}, {outcome['seconds']:.0f} s", flush=True)
            stored["sections"][name] = outcome
            store(path, stored)
            if outcome["status"] != "ok":
                failed.append(name)
    return failed


def run_section(command: Sequence[str], part: Path, limit: float) -> dict[str, Any]:
    """One section: its status, its seconds, and what it has written to `part` until it ended.

    The process and all that it started are ended after `limit` seconds.
    """
    started = time.monotonic()
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(limit)
        status = "ok" if code == 0 else f"failed: exit code {code}"
    except subprocess.TimeoutExpired:
        status = f"stopped after its {limit:.0f} s"
    finally:
        _end(process)
    results = json.loads(part.read_text()) if part.is_file() else None
    return {"status": status, "seconds": time.monotonic() - started, "results": results}


def store(path: Path, content: Any) -> None:
    """The content as JSON in a file, whole at every moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=1) + "\n")


def _require(name: str) -> None:
    if name not in SECTIONS:
        raise ConfigError(unknown_name("section", name, SECTIONS))


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started, where anything is left of them."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
