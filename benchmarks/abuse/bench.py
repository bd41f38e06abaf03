"""A small grid on a random tiny model: runs of it, and whether a folder holds what it should."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qbench import isolation
from qbench.commands.main import main
from qbench.experiment.store import Store

COMMAND = [sys.executable, "-P", "-c", "from qbench.commands.main import main; main()"]
GRID = (
    # One cell at a time: a warm run forks, which must not happen beside another thread.
    *("--jobs", "1", "--no-latency"),
    *("--methods", "none,rtn,gptq", "--bits", "2,4", "--group-size", "32"),
    *("--tasks", "wikitext,divergence", "--data", "mini", "--dtype", "float32"),
    *("--set", "wikitext.limit=2", "--set", "wikitext.length=64"),
    *("--set", "divergence.limit=2", "--set", "divergence.length=64"),
    *("--set", "calibration.samples=4", "--set", "calibration.length=32"),
)
Table = dict[str, tuple[Any, ...]]


class Run:
    """A run of the grid in a process group of its own, as a terminal gives it one.

    warm: forked from this process, in which everything is imported, and with cells forked from it;
    else started as a user does. What it says is in a file.
    """

    def __init__(self, arguments: list[str], said: Path, warm: bool) -> None:
        self.said = said
        self._process: Any = None
        if warm:
            sys.stdout.flush()
            forking = multiprocessing.get_context("fork")
            self._process = forking.Process(target=_run_here, args=(arguments, said))
            self._process.start()
            self.pid: int = self._process.pid
            return
        with said.open("wb") as file:
            self._process = subprocess.Popen(
                [*COMMAND, *arguments], stdout=file, stderr=file, process_group=0
            )
        self.pid = self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        if isinstance(self._process, subprocess.Popen):
            return self._process.poll()
        code: int | None = self._process.exitcode
        return code

    def wait(self, seconds: float = float("inf")) -> bool:
        """Whether it ended within so many seconds."""
        deadline = time.monotonic() + seconds
        while self.code is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.code is not None

    def text(self) -> str:
        """What it has said until now."""
        return self.said.read_text(errors="replace")


def _run_here(arguments: list[str], said: Path) -> None:
    """What a warm run does in its own process."""
    os.setpgid(0, 0)
    with said.open("wb", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    forking = multiprocessing.get_context("fork")
    isolation._context = lambda: forking
    sys.argv = ["qbench", *arguments]
    main()


def tiny_model(folder: Path) -> Path:
    """A random Llama of two blocks with one token per byte."""
    import torch

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
    """One model, and runs of the grid on it.

    seconds: that the last whole run took, which changes with what else the machine does. problems:
    what went wrong, in sentences.
    """

    def __init__(self, scratch: Path, seed: int, warm: bool) -> None:
        self.scratch = scratch
        self.warm = warm
        self.model = tiny_model(scratch / "model")
        self.random = random.Random(seed)
        self.problems: list[str] = []
        self.runs = 0
        self.finished = scratch / "undisturbed"
        if warm:  # what a run would import, and measures of the machine once
            preloaded(self.arguments(self.finished))
        code, text = self.run(self.finished)
        self.expected = table(self.finished)
        if code != 0 or {status for status, *_ in self.expected.values()} != {"ok"}:
            raise SystemExit(f"the undisturbed run failed: {text}")

    def arguments(self, out: Path) -> list[str]:
        """What is typed after `qbench`."""
        return ["run", "--model", str(self.model), *GRID, "--out", str(out)]

    def start(self, out: Path) -> Run:
        """A run that goes on."""
        self.runs += 1
        return Run(self.arguments(out), self.scratch / f"run-{self.runs}.txt", self.warm)

    def run(self, out: Path) -> tuple[int | None, str]:
        """A whole run: its exit code and what it said."""
        started = time.monotonic()
        run = self.start(out)
        run.wait()
        self.seconds = time.monotonic() - started
        return run.code, run.text()

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


def preloaded(arguments: list[str]) -> None:
    """Import what a run and its cells import, by the dry run of one and their own list."""
    import importlib

    from qbench.commands.main import app
    from qbench.experiment.preloaded import MODULES

    for name in (*MODULES, "qbench.reports.page", "qbench.experiment.runner"):
        importlib.import_module(name)
    app([*arguments, "--dry-run"], standalone_mode=False)
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # looking for garbage would write to every page that is shared


def table(out: Path) -> Table:
    """Of every record its status, scores and bits, by id. Times differ from run to run."""
    rows: Table = {}
    for record in Store(out).read_records()[0]:
        scores = tuple((s.task, s.metric, s.filter, s.value, s.n) for s in record.scores)
        rows[record.id] = (record.status, scores, tuple(record.bits_per_weight.items()))
    return rows
