"""Runs that are killed, run in pairs and find damage: `python -P benchmarks/abuse.py [--kills 20]
[--pairs 5] [--no-damage] [--seed 0] [--json FILE]`.

A small grid on a random tiny model is run undisturbed. Then it is killed at random moments, by each
of several signals, and resumed until it is complete; run twice at once on one folder; and given
every kind of damaged artifact. The final table must be the undisturbed one each time, no record may
have been lost or put into quarantine, and nothing may be left over. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from qbench.environment import environment
from qbench.experiment.store import Store
from qbench.files.shards import INDEX, SINGLE

QBENCH = [sys.executable, "-P", "-c", "from qbench.commands.main import main; main()"]
GRID = (
    *("--methods", "none,rtn,gptq", "--bits", "2,4", "--group-size", "32"),
    *("--tasks", "wikitext,divergence", "--data", "mini", "--dtype", "float32"),
    *("--set", "wikitext.limit=2", "--set", "wikitext.length=64"),
    *("--set", "divergence.limit=2", "--set", "divergence.length=64"),
    *("--set", "calibration.samples=4", "--set", "calibration.length=32"),
)
Table = dict[str, tuple[Any, ...]]


def tiny_model(folder: Path) -> Path:
    """A random Llama of two blocks with one token per byte."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=256,
        eos_token_id=256,
        pad_token_id=256,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=bytewise, eos_token="</s>").save_pretrained(folder)
    return folder


class Bench:
    """One model, and runs of the grid on it. problems: what went wrong, in sentences."""

    def __init__(self, scratch: Path, seed: int) -> None:
        self.scratch = scratch
        self.model = tiny_model(scratch / "model")
        self.random = random.Random(seed)
        self.problems: list[str] = []
        started = time.monotonic()
        self.finished = scratch / "undisturbed"
        code, text = self.run(self.finished)
        self.seconds = time.monotonic() - started
        self.expected = table(self.finished)
        if code != 0 or {status for status, *_ in self.expected.values()} != {"ok"}:
            raise SystemExit(f"the undisturbed run failed: {text}")

    def start(self, out: Path) -> subprocess.Popen[str]:
        """A run in a process group of its own, as a terminal gives it one."""
        return subprocess.Popen(
            [*QBENCH, "run", "--model", str(self.model), *GRID, "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, out: Path) -> tuple[int, str]:
        """A whole run: its exit code and what it said."""
        process = self.start(out)
        text, _ = process.communicate()
        return process.returncode, text

    def expect(self, fine: bool, sentence: str) -> None:
        """Note a problem unless all is fine."""
        if not fine:
            self.problems.append(sentence)
            print(f"PROBLEM  {sentence}", flush=True)

    def expect_undisturbed(self, out: Path, what: str) -> None:
        """That a folder holds the table of the undisturbed run, and nothing that is left over."""
        self.expect(table(out) == self.expected, f"{what}: another table")
        self.expect(not (out / "reference").exists(), f"{what}: reference/ is left")
        quarantined = list((out / "quarantine").glob("*"))
        self.expect(not quarantined, f"{what}: in quarantine: {quarantined}")


def table(out: Path) -> Table:
    """Of every record its status, scores and bits, by id. Times differ from run to run."""
    rows: Table = {}
    for record in Store(out).read_records()[0]:
        scores = tuple((s.task, s.metric, s.filter, s.value, s.n) for s in record.scores)
        rows[record.id] = (record.status, scores, tuple(record.bits_per_weight.items()))
    return rows


def kill(bench: Bench, process: subprocess.Popen[str], how: str) -> bool:
    """End a run in one way; whether that was before it had ended by itself."""
    if process.poll() is not None:
        return False
    if how == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    elif how == "the runner":
        process.kill()
    elif how == "all at once":
        family = [process, *psutil.Process(process.pid).children(recursive=True)]
        for member in family:
            try:
                os.kill(member.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    else:
        process.terminate()
    try:
        process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        bench.expect(False, f"a run did not end within 60 s of {how}")
        process.kill()
    return True


def kills(bench: Bench, count: int) -> Counter[str]:
    """Kill runs at random moments until `count` were hit; each folder is resumed to its end."""
    done: Counter[str] = Counter()
    number = 0
    while sum(done.values()) < count:
        number += 1
        out = bench.scratch / f"killed-{number}"
        kept: Table = {}
        for _ in range(bench.random.randint(1, 4)):
            process = bench.start(out)
            time.sleep(bench.random.uniform(0.2, 1.0) * bench.seconds)
            how = bench.random.choice(["Ctrl-C", "the runner", "all at once", "SIGTERM"])
            if not kill(bench, process, how):
                process.communicate()
                break
            done[how] += 1
            if (out / "records").is_dir():
                now = table(out)
                lost = [name for name, row in kept.items() if now.get(name) != row]
                bench.expect(not lost, f"{out.name}: records {lost} were lost by {how}")
                kept = now
        # What a killed runner has started ends with it, but not in the same instant.
        time.sleep(0.5)
        code, text = bench.run(out)
        bench.expect(code == 0, f"{out.name}: exit code {code} after kills: {text[-500:]}")
        bench.expect_undisturbed(out, out.name)
        if not bench.problems:
            shutil.rmtree(out)
    return done


def pairs(bench: Bench, count: int) -> None:
    """Two runners on one folder, the second a random moment later."""
    for number in range(count):
        out = bench.scratch / f"pair-{number}"
        first = bench.start(out)
        time.sleep(bench.random.uniform(0, 0.7) * bench.seconds)
        second = bench.start(out)
        texts = [process.communicate()[0] for process in (first, second)]
        codes = [process.returncode for process in (first, second)]
        bench.expect(codes == [0, 0], f"{out.name}: exit codes {codes}: {texts[0]} {texts[1]}")
        shown = [text[text.index("unquantized") : text.index("Note:")] for text in texts]
        bench.expect(shown[0] == shown[1], f"{out.name}: the two show other tables")
        bench.expect_undisturbed(out, out.name)
        if not bench.problems:
            shutil.rmtree(out)


def flip(file: Path, place: float) -> None:
    """Change one byte of a file, at a part of its length."""
    data = bytearray(file.read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    file.write_bytes(data)


def cut(file: Path) -> None:
    """Leave half of a file."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change quantization_config."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))


def replace_by_another(folder: Path) -> None:
    """Put a whole model there, but that of another cell."""
    other = next(path for path in sorted(folder.parent.iterdir()) if path != folder)
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def to_a_file(folder: Path) -> None:
    """Put a file in the place of the folder."""
    shutil.rmtree(folder)
    folder.write_text("no folder")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "the weights are missing": lambda folder: (folder / SINGLE).unlink(),
    "the weights are cut": lambda folder: cut(folder / SINGLE),
    "a byte of the weights": lambda folder: flip(folder / SINGLE, 0.9),
    "a byte of the header": lambda folder: flip(folder / SINGLE, 0.01),
    "the index is missing": lambda folder: (folder / INDEX).unlink(),
    "the index is garbage": lambda folder: (folder / INDEX).write_bytes(b"\x00\xff{"),
    "the config is missing": lambda folder: (folder / "config.json").unlink(),
    "the config is garbage": lambda folder: (folder / "config.json").write_text("garbage"),
    "the costs are missing": lambda folder: change_config(folder, lambda e: e.pop("costs")),
    "the tokenizer is garbage": lambda folder: (folder / "tokenizer.json").write_text("[]"),
    "the tokenizer is missing": lambda folder: (folder / "tokenizer.json").unlink(),
    "a file was added": lambda folder: shutil.copy(folder / SINGLE, folder / "x.safetensors"),
    "the folder is empty": lambda folder: [file.unlink() for file in folder.iterdir()],
    "a file in its place": to_a_file,
    "another model in its place": replace_by_another,
}


def damages(bench: Bench) -> int:
    """Every kind of damage to one artifact, whose cell has no record: redone, and said."""
    for name, damage in DAMAGES.items():
        out = bench.scratch / "damaged"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(bench.finished, out)
        quantized = [record for record in Store(out).read_records()[0] if record.cell.scheme]
        victim = bench.random.choice(quantized)
        (out / "records" / f"{victim.id}.json").unlink()
        damage(out / "artifacts" / victim.cell.artifact)
        code, text = bench.run(out)
        bench.expect(code == 0, f"{name}: exit code {code}: {text[-500:]}")
        bench.expect(text.count("quantized again") == 1, f"{name}: was not said: {text[-500:]}")
        bench.expect_undisturbed(out, name)
    return len(DAMAGES)


def main() -> int:
    """Run what is asked for, print the figures, and say whether all went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--no-damage", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qbench-abuse-") as scratch:
        bench = Bench(Path(scratch), options.seed)
        print(f"undisturbed  {len(bench.expected)} cells in {bench.seconds:.1f} s", flush=True)
        done = kills(bench, options.kills)
        print(f"kills        {sum(done.values())}: {dict(done)}", flush=True)
        pairs(bench, options.pairs)
        print(f"pairs        {options.pairs}", flush=True)
        kinds = 0 if options.no_damage else damages(bench)
        print(f"damages      {kinds} kinds", flush=True)
    print(f"{len(bench.problems)} problems")
    if options.json:
        figures = {
            "kills": done,
            "pairs": options.pairs,
            "damages": kinds,
            "problems": bench.problems,
            "environment": environment(),
        }
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if bench.problems else 0


if __name__ == "__main__":
    sys.exit(main())
