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

SECTIONS = {  # cheapest first; seconds after which a section is ended
    "correctness": 75.0,
    "latency": 120.0,
    "tune": 120.0,
    "pipeline": 90.0,
    "end_to_end": 90.0,
}


def chosen(names: str) -> list[str]:
    """The sections of a list with commas, in their own order. ConfigError for an unknown one."""
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in SECTIONS:
            raise ConfigError(unknown_name("section", name, SECTIONS))
    return [name for name in SECTIONS if name in wanted]


def report(
    names: Sequence[str],
    command: Sequence[str],
    path: Path,
    facts: Mapping[str, Any],
    factor: float = 1.0,
) -> list[str]:
    """Run the sections, with the file at `path` whole after each of them; those that failed.

    command: runs a section that `--part NAME --json FILE` names. facts: what the file tells beside
    the sections. factor: times each section's limit.
    """
    stored: dict[str, Any] = {**facts, "sections": {}}
    store(path, stored)
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            part = Path(folder) / f"{name}.json"
            own = [*command, "--part", name, "--json", str(part)]
            print(f"--- {name}", flush=True)
            outcome = run_section(own, part, factor * SECTIONS[name])
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


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started, where anything is left of them."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
