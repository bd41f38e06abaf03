"""What the machine code of a GPU consists of: registers, spills and instructions, by cuobjdump."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from registers_in_flight import overwritten

INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(\S*)(.*?);", re.MULTILINE
)
USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")


def functions(binary: bytes, cuobjdump: Path, unit: str = "") -> dict[str, dict[str, Any]]:
    """Of each function of a cubin: registers, bytes of stack and of static shared memory, spills.

    And the counts of opcodes: in all, and in the loop that counts. That is the innermost of those
    with the most instructions `unit`, or without a unit the longest. And what writes registers that
    products in flight read.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage = _printed(cuobjdump, "--dump-resource-usage", file.name)
        code = _printed(cuobjdump, "--dump-sass", file.name)
    needs = {name: tuple(map(int, numbers)) for name, *numbers in USAGE.findall(usage)}
    listings = {text.split(maxsplit=1)[0]: text for text in code.split("Function : ")[1:]}
    if not needs or needs.keys() != listings.keys():
        raise RuntimeError(f"cuobjdump printed neither registers nor instructions: {usage[:200]!r}")
    return {name: _facts(needs[name], text, unit) for name, text in listings.items()}


def _facts(needs: tuple[int, ...], text: str, unit: str) -> dict[str, Any]:
    registers, stack, shared = needs
    listing = [(int(at, 16), opcode, rest) for at, opcode, _, rest in INSTRUCTION.findall(text)]
    mix = Counter(opcode for _, opcode, _ in listing)
    loop = max(_loops(listing), key=lambda inside: _weight(inside, unit), default=Counter())
    return {
        "registers": registers,
        "stack_bytes": stack,
        "static_shared_bytes": shared,
        "spill_loads": mix["LDL"],
        "spill_stores": mix["STL"],
        "instructions": dict(mix.most_common()),
        "loop": dict(loop.most_common()),
        "overwritten": overwritten(text),
    }


def _loops(listing: list[tuple[int, str, str]]) -> Iterator[Counter[str]]:
    """The opcodes between a backward branch and its target, of each loop."""
    for end, opcode, rest in listing:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if opcode == "BRA" and target and int(target[1], 16) < end:
            start = int(target[1], 16)
            yield Counter(opcode for at, opcode, _ in listing if start <= at <= end)


def _weight(loop: Counter[str], unit: str) -> tuple[int, int]:
    if unit:
        return loop[unit], -loop.total()
    return loop.total(), 0


def _printed(cuobjdump: Path, option: str, file: str) -> str:
    """What the program prints; it calls nvdisasm, which lies beside it."""
    environment = {**os.environ, "PATH": f"{cuobjdump.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [cuobjdump, option, file]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return done.stdout
