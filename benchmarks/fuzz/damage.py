"""What is done to a folder: to the structures that its files are made of, and blindly."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qbench.experiment.record_file import checksum
from qbench.files.written_folder import CARD
from qbench.records import Cell

# What an entry of a JSON document becomes: other types, extremes, and empty containers.
VALUES: list[Any] = [None, True, "false", -1, 0, 1, 7, 3.5, 2**20, 2**31, 2**63, 10**30, 1e308]
VALUES += [float("nan"), "", "x", "../x", "/etc/passwd", "\ud800", "\x1b[2J", "float64", "F64"]
VALUES += ["(a+)+$", "y" * 100_000, [], {}, [[]], [0], [2**40, 2**40], {"a": {"a": 1}}]
LIKELY = (".json", ".yaml", ".safetensors", ".gguf", ".parquet", ".jinja")  # of no other files
NUMBERS = (0, 1, 2, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


def blindly(raw: bytearray, rng: random.Random) -> bytes:
    """Bytes take other values, are missing, or are there twice."""
    start = rng.randrange(max(1, min(len(raw), rng.choice([8, 300, 4000, len(raw)]))))
    end = rng.choice([len(raw), start + rng.randrange(1, 64)])
    change = rng.random()
    if change < 0.6:
        for _ in range(rng.choice([1, 1, 2, 8, 64])):
            raw[rng.randrange(start, max(start + 1, min(end, len(raw))))] ^= rng.randrange(1, 256)
    elif change < 0.8:
        del raw[start:end]
    else:
        raw[start:start] = rng.choice(
            [b"[" * 100_000, b"9" * 50, b'"', bytes(5000), raw[start:end]]
        )
    return bytes(raw)


def numbers(raw: bytearray, rng: random.Random) -> bytes:
    """A number of 4 or 8 bytes, such as a length, becomes another."""
    size = rng.choice([4, 8])
    start = rng.choice([0, rng.randrange(max(1, min(len(raw) - size, 4000)))])
    raw[start : start + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, "little")
    return bytes(raw)


def structure(raw: bytearray, rng: random.Random) -> bytes:
    """Entries of a JSON document, or of the header of safetensors, become others, or go."""
    start = 0 if raw[:1] in b"{[" else 8
    end = 8 + int.from_bytes(raw[:8], "little") if start else len(raw)
    document = json.loads(raw[start:end])
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        container, key = _random_entry(document, rng)
        change = rng.random()
        if change < 0.2:
            del container[key]
        elif change < 0.3 and isinstance(container, list):
            container.append(container[key])
        elif change < 0.4 and isinstance(container, dict):
            container[rng.choice(["x", "\ud800", "../x", "=1"])] = container.pop(key)
        elif change < 0.6 and type(container[key]) is int:
            factor = rng.choice([-1, 2, 1000, 10**9])
            container[key] = container[key] * factor + rng.randrange(2)
        else:
            container[key] = copy.deepcopy(rng.choice(VALUES))
        if not document:
            break
    text = json.dumps(document).encode()
    return (len(text).to_bytes(8, "little") if start else b"") + text + bytes(raw[end:])


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


def files(path: Path, rng: random.Random) -> str:
    """A file becomes a link, a pipe, a folder, another file, or is missing; or one is added."""
    kind = rng.choice(["link", "device", "pipe", "circle", "folder", "lost", "other", "added"])
    others = sorted(p for p in path.parent.iterdir() if p.is_file())
    content = rng.choice(others).read_bytes()
    if kind == "added":
        names = ["quantize_config.json", "generation_config.json", "added_tokens.json", "x.jinja"]
        path = path.parent / rng.choice([*names, "model-2.safetensors", "vocab.json", "model.gguf"])
    path.unlink(missing_ok=True)
    if kind in ("link", "device", "circle"):
        target = {"link": "/etc/hostname", "device": "/dev/zero", "circle": path.name}[kind]
        path.symlink_to(target)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("other", "added"):
        path.write_bytes(content)
    return f"{kind} at {path.name}"


def damage(folder: Path, rng: random.Random) -> str:
    """Change one file, and say how."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD)
    path = rng.choice([path for path in paths if path.suffix in LIKELY])
    if rng.random() < 0.1:
        return files(path, rng)
    changes: list[Callable[[bytearray, random.Random], bytes]] = [blindly, numbers]
    if path.suffix in (".json", ".yaml", ".safetensors"):
        changes += [structure] * 4
    change = rng.choice(changes)
    path.write_bytes(change(bytearray(path.read_bytes()), rng))
    signed = path.parent.name == "records" and rng.random() < 0.7 and sign(path)
    return f"{change.__name__} in {path.name}{', signed' if signed else ''}"


def sign(path: Path) -> bool:
    """Give a damaged record the checksum and the name of what it says now; whether it has such."""
    try:
        body = json.loads(path.read_text())
        body["id"] = Cell.model_validate(body["cell"]).id
        text = json.dumps(body | {"checksum": checksum(body)})
    except (ValueError, TypeError, KeyError, RecursionError):
        return False
    path.unlink()
    path.with_name(f"{body['id']}.json").write_text(text)
    return True
