"""Registers that matrix products in flight still read, and that something else writes.

On Hopper a product is asynchronous (HGMMA): what it reads of registers, its first operand, must not
be written before a wait (WARPGROUP.DEPBAR) has seen its end. Triton's pipelined loops do not wait
for it (triton-lang/triton#9433, in 3.6 and 3.7): there an address gets into a weight, now and then.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

INSTRUCTION = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)(\S*)\s*(.*?)\s*;", re.MULTILINE
)
RESULT = re.compile(r"(?:U?P(?:\d|T), )?R(\d+)\b")  # behind a predicate, which may be one, too
WORDS = {"64": 2, "WIDE": 2, "128": 4}  # modifiers -> registers that are written
FRAGMENT = 4  # registers of a product's first operand
# Their first register is no result.
WRITE_NONE = {"BAR", "BRA", "LDGSTS", "R2UR", "RED", "ST", "STG", "STL", "STS", "SYNCS", "UBLKCP"}


class Instruction(NamedTuple):
    """One line of SASS: its address, the opcode, its modifiers with dots, and its operands."""

    at: int
    opcode: str
    modifiers: str
    operands: str


def overwritten(sass: str) -> list[str]:
    """The instructions of loops that write such a register, as text; each loop is run twice."""
    code = [Instruction(int(at, 16), *rest) for at, *rest in INSTRUCTION.findall(sass)]
    lines: dict[str, None] = {}
    for loop in _loops(code):
        if any(line.opcode == "HGMMA" for line in loop):
            lines |= dict.fromkeys(_conflicts([*loop, *loop]))
    return list(lines)


def _loops(code: list[Instruction]) -> Iterator[list[Instruction]]:
    """What lies between a backward branch and its target."""
    for end in code:
        target = re.search(r"0x([0-9a-f]+)", end.operands)
        if end.opcode == "BRA" and target and int(target[1], 16) < end.at:
            yield [line for line in code if int(target[1], 16) <= line.at <= end.at]


def _conflicts(lines: list[Instruction]) -> Iterator[str]:
    closed: list[set[int]] = []  # what the products of each group read, the oldest group first
    current: set[int] = set()  # the same of the group that is not closed yet
    for line in lines:
        if line.opcode == "HGMMA":
            current |= _fragment(line)
            if "gsb" in line.operands:
                closed.append(current)
                current = set()
        elif line.opcode == "WARPGROUP" and "DEPBAR" in line.modifiers:
            left = int(line.operands.split(",")[1], 0)  # groups that may still be in flight
            closed = closed[len(closed) - min(left, len(closed)) :]
        elif _written(line) & current.union(*closed):
            yield f"{line.at:04x} {line.opcode}{line.modifiers} {line.operands}"


def _fragment(line: Instruction) -> set[int]:
    """What a product reads of registers; nothing where both operands are in shared memory."""
    first = re.fullmatch(r"R(\d+)(?:\.reuse)?", line.operands.split(", ")[1])
    return _run(int(first[1]), FRAGMENT) if first else set()


def _written(line: Instruction) -> set[int]:
    result = RESULT.match(line.operands)
    if line.opcode in WRITE_NONE or result is None:
        return set()
    words = max(WORDS.get(modifier, 1) for modifier in line.modifiers.split("."))
    return _run(int(result[1]), words)


def _run(first: int, count: int) -> set[int]:
    return set(range(first, first + count))
