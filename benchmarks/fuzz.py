"""Damaged models and records: `python benchmarks/fuzz.py [--cases 20000] [--seed 0] [--json FILE]`.

Folders of ours, of GPTQ and of AWQ, GGUF files and folders of records are damaged: by what they are
made of (numbers, types, shapes, offsets, names, links, missing files), and blindly (flips, cuts).
Each case is a forked process with 2 s of processor time and 1 GB beyond what its parent has. There
`qbench load`, `inspect`, `verify` or `report` must do their work or raise one of the project's
errors; weights that changed must be refused, or be found by `verify`. Exit code 1 where a case did
anything else; it is printed, and can be repeated from its number alone.
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
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

import qbench
from qbench import Scheme
from qbench.checkpoint.folder import save_checkpoint, unquantized_tensors, write_model_folder
from qbench.commands.main import app
from qbench.contracts import Scheme as RecordedScheme
from qbench.environment import environment
from qbench.errors import QbenchError
from qbench.experiment.store import Store
from qbench.export import export
from qbench.files.shards import CARD, INDEX, verify
from qbench.models.blocks import quantizable
from qbench.models.source import find_model
from qbench.quantization import read_model
from qbench.records import Cell, Record, Score

SECONDS = 2.0  # of processor time that a case may take
BYTES = 1 << 30  # that a case may take beyond what the parent has
METHODS = {"rtn": {}, "alternating": {}, "unisvq": {"epochs": 0}}  # one per format, no training
# What an entry of a JSON document becomes: other types, extremes, and empty containers.
VALUES: list[Any] = [None, True, "false", -1, 0, 1, 7, 3.5, 2**20, 2**31, 2**63, 10**30, 1e308]
VALUES += [float("nan"), "", "x", "../x", "/etc/passwd", "\ud800", "\x1b[2J", "float64", "F64"]
VALUES += ["(a+)+$", "y" * 100_000, [], {}, [[]], [0], [2**40, 2**40], {"a": {"a": 1}}]
NUMBERS = (0, 1, 2, 255, 2**16, 2**31 - 1, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


def originals(folder: Path) -> list[Path]:
    """Small models in every format and records, the same every time."""
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    config = LlamaConfig(**shape, num_key_value_heads=1, num_hidden_layers=2, vocab_size=64)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:64]
    bpe = BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(bpe), eos_token="!")
    tokens = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    paths = []

    def saved(name: str, method: str, scheme: Scheme, shard_bytes: int) -> Path:
        torch.manual_seed(0)
        quantizer = qbench.get_method(method, **METHODS[method])
        made = qbench.quantize(LlamaForCausalLM(config), quantizer, scheme, tokens)
        parts = (made.model, tokenizer, made.weights, made.manifest, {})
        return save_checkpoint(folder / name, *parts, shard_bytes=shard_bytes)

    for method in METHODS:
        paths.append(saved(method, method, Scheme(3, 16), 10**9))
    paths.append(saved("shards", "rtn", Scheme(3, 16), 20_000))
    symmetric = saved("symmetric", "rtn", Scheme(4, 32, True), 10**9)
    paths.append(export(symmetric, "gptq", folder / "gptq"))
    paths.append(export(symmetric, "dense", folder / "dense"))
    paths.append(awq(folder / "awq", LlamaForCausalLM(config), tokenizer))
    (folder / "gguf").mkdir()
    (folder / "gguf" / "model.gguf").write_bytes(gguf_bytes())
    return [*paths, folder / "gguf", records(folder / "records")]


def awq(folder: Path, model: Any, tokenizer: Any) -> Path:
    """A folder in AWQ's GEMM layout, of random words."""
    draw = torch.Generator().manual_seed(0)
    names = list(quantizable(model))
    tensors = unquantized_tensors(model, dict.fromkeys(names))
    for name in names:
        out, inputs = model.get_submodule(name).weight.shape
        for part, rows in (("qweight", inputs), ("qzeros", inputs // 32)):
            words = torch.randint(-(2**31), 2**31, (rows, out // 8), generator=draw)
            tensors[f"{name}.{part}"] = words.to(torch.int32)
        tensors[f"{name}.scales"] = torch.rand((inputs // 32, out), generator=draw).half()
    entry = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    return write_model_folder(folder, model.config, tokenizer, tensors, entry)


def gguf_bytes() -> bytes:
    """A small file with strings, arrays and tensors of two types."""
    import gguf
    import numpy as np

    with tempfile.TemporaryDirectory() as scratch:
        writer = gguf.GGUFWriter(Path(scratch) / "a", "llama")
        writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
        writer.add_uint32("llama.block_count", 1)
        blocks = np.zeros((8, 18), dtype=np.uint8)
        kind = gguf.GGMLQuantizationType.Q4_0
        writer.add_tensor("blk.0.attn_q.weight", blocks, raw_dtype=kind)
        writer.add_tensor("token_embd.weight", np.zeros((3, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return (Path(scratch) / "a").read_bytes()


def records(folder: Path) -> Path:
    """A run's folder with two records."""
    store = Store(folder)
    for bits in (2, 3):
        cell = Cell(
            model="m", revision="r", method="rtn", params={}, source="0" * 12,
            scheme=RecordedScheme(bits, 64), calibration=None, tasks=(), dtype="float32", seed=0,
        )  # fmt: skip
        score = Score(
            task="wikitext", metric="word_perplexity", value=9.5, stderr=0.1, n=5,
            higher_is_better=False,
        )  # fmt: skip
        store.write_record(Record(id=cell.id, cell=cell, status="ok", scores=(score,)))
    return folder


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
            container[key] = rng.choice(VALUES)
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
    likely = [path for path in paths if path.suffix in (".json", ".safetensors", ".gguf")]
    path = rng.choice(likely)
    if rng.random() < 0.1:
        return files(path, rng)
    changes: list[Callable[[bytearray, random.Random], bytes]] = [blindly, numbers]
    if path.suffix in (".json", ".safetensors"):
        changes += [structure] * 4
    change = rng.choice(changes)
    path.write_bytes(change(bytearray(path.read_bytes()), rng))
    return f"{change.__name__} in {path.name}"


def fingerprint(model: Any) -> str:
    """A hash of all weights, dequantized."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.float().numpy().tobytes())
    return digest.hexdigest()


def outcome(folder: Path, command: str, weights: str) -> tuple[str, str]:
    """(word, message): `done` or `refused`, else what is wrong. weights: of the undamaged model."""
    silent = io.StringIO()
    try:
        with redirect_stdout(silent), redirect_stderr(silent), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if command == "load":
                model = read_model(find_model(str(folder)), "float32").model
                if fingerprint(model) != weights and not _found(folder):
                    return "unnoticed", "weights changed"
            elif command == "inspect":
                path = folder / "model.gguf"
                app(["inspect", str(path if path.exists() else folder)], standalone_mode=False)
            else:
                app([command, str(folder)], standalone_mode=False)
    except QbenchError as error:
        return "refused", str(error)
    except BaseException as error:  # whatever it is, it is what this looks for
        import traceback

        lines = traceback.extract_tb(error.__traceback__)
        place = next((line for line in reversed(lines) if "qbench" in line.filename), lines[-1])
        return "crashed", f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
    return "done", ""


def _found(folder: Path) -> bool:
    """Whether verifying finds a change, or has nothing to verify by."""
    try:
        return any(verify(folder).values())
    except QbenchError:
        return True


def one_case(
    number: int, seed: int, models: dict[Path, str], scratch: Path
) -> tuple[str, str, float, float]:
    """(outcome, what was done and said, processor seconds, bytes beyond the parent's)."""
    rng = random.Random(f"{seed} {number}")
    original = rng.choice(list(models))
    folder = scratch / "case"
    shutil.copytree(original, folder)
    done = damage(folder, rng)
    commands = {"records": ["report"], "gguf": ["inspect"]}
    command = rng.choice(commands.get(original.name, ["load", "load", "load", "inspect", "verify"]))
    answer = scratch / "answer"
    answer.unlink(missing_ok=True)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_AS, (pages + BYTES, pages + BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (5, 6))
        answer.write_text(json.dumps(outcome(folder, command, models[original])))
        os._exit(0)
    status, usage = _wait(child)
    word, message = "died", f"status {status}"
    if answer.is_file():
        word, message = json.loads(answer.read_text())
    shutil.rmtree(folder)
    seconds = usage.ru_utime + usage.ru_stime
    grown = usage.ru_maxrss * 1024 - before
    # what only says what the hashes are may change without the weights
    if word == "unnoticed" and INDEX in done:
        word = "done"
    if word in ("done", "refused") and (seconds > SECONDS or grown > BYTES):
        word = "slow" if seconds > SECONDS else "large"
    return word, f"{command} of {original.name}, {done}: {message}", seconds, grown


def _wait(child: int) -> tuple[int, Any]:
    """Status and usage of a child, which is ended where it waits for half a minute."""
    deadline = time.monotonic() + 30
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            return status, usage
        if time.monotonic() > deadline:
            os.kill(child, 9)
            deadline = float("inf")
        time.sleep(0.002)


def main() -> int:
    """Run the cases and print what happened; 1 where a case did what it must not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    slowest, largest = 0.0, 0.0
    wrong = []
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.environ["QBENCH_CACHE"] = str(scratch / "cache")
        (scratch / "originals").mkdir()
        models = dict.fromkeys(originals(scratch / "originals"), "")
        for folder in models:  # imports and caches are paid before
            if folder.name not in ("gguf", "records"):
                model = read_model(find_model(str(folder)), "float32").model
                models[folder] = fingerprint(model)
            command = {"records": "report"}.get(folder.name, "inspect")
            word, message = outcome(folder, command, "")
            assert word == "done", f"{folder.name}: {message}"
        for number in range(args.first, args.first + args.cases):
            word, text, seconds, grown = one_case(number, args.seed, models, scratch)
            counts[word] += 1
            slowest, largest = max(slowest, seconds), max(largest, grown)
            if word not in ("done", "refused"):
                wrong.append(f"case {number} {word} ({seconds:.1f} s): {text[:500]}")
                print(wrong[-1].encode("ascii", "backslashreplace").decode(), flush=True)
    print(f"{args.cases} cases: {dict(counts)}; slowest {slowest:.2f} s, largest "
          f"{largest / 1e6:.0f} MB; {len(wrong)} wrong")  # fmt: skip
    if args.json:
        facts = {
            "cases": args.cases,
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
