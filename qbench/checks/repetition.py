"""Promises about repetition: one weight gives the same bits, whatever came before, wherever."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from qbench.checks.samples import (
    GROUP,
    IN,
    OUT,
    bits_of,
    equal,
    hyper_parameters,
    quantize_sample,
    sample_weight,
)
from qbench.checks.seeds import global_seed  # without torch's compiler, a second to import
from qbench.checks.verdict import Broke
from qbench.contracts import Scheme
from qbench.errors import ending_of
from qbench.registry import get_method, load_plugin

PATIENCE = 900  # seconds for a fresh process; `check_isolated` gives up earlier


def check_deterministic(method: Any) -> None:
    """The same input gives the same bits, whatever the global random state."""
    scheme = Scheme(bits_of(method)[0], GROUP)
    results = []
    for seed in (1, 2):
        with global_seed(seed):
            results.append(quantize_sample(method, scheme))
    if not equal(*results):
        raise Broke("two runs differ")


def check_keeps_no_state(method: Any) -> None:
    """What was quantized before makes no difference, for the same object and for a new one."""
    scheme = Scheme(bits_of(method)[0], GROUP)
    first = quantize_sample(method, scheme)
    other_weight = sample_weight().flip(0) * 1.5
    other = quantize_sample(method, scheme, other_weight)
    if torch.equal(other.dequantize(), first.dequantize()) and method.format != "lattice":
        raise Broke("two weights of one shape give the same result")
    quantize_sample(method, Scheme(bits_of(method)[-1], None), sample_weight(OUT // 2, IN))
    if not equal(quantize_sample(method, scheme), first):
        raise Broke("the result depends on what was quantized before")
    new = type(method)(**hyper_parameters(method))
    if not equal(quantize_sample(new, scheme), first):
        raise Broke("another object with the same parameters gives another result")


def check_same_in_every_process(method: Any) -> None:
    """A fresh interpreter with as many threads gives the same bits, whatever its hashes."""
    origin = method.name
    module = sys.modules[type(method).__module__]
    if module.__name__.startswith("qbench_plugin_"):
        origin = str(Path(str(module.__file__)).resolve())
    if fresh_fingerprints(origin, (method.name,))[method.name] != fingerprint(method):
        raise Broke("a fresh process gives another result")


def fresh_fingerprints(origin: str, names: Sequence[str]) -> dict[str, str]:
    """The fingerprints of methods by name, made by one fresh interpreter; Broke where it fails.

    origin: the plug-in file that defines them, or anything else.
    """
    command = [sys.executable, "-P", "-m", __name__, origin, *names]
    threads = str(torch.get_num_threads())  # products and sums are cut by them
    environment = os.environ | {"PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": threads}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    if done.returncode:
        raise Broke(f"a fresh process {ending_of(done.returncode, done.stderr)}")
    made: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return made


def fingerprint(method: Any) -> str:
    """sha256 over the parts of a sample weight and of a model's weights."""
    digest = hashlib.sha256()
    for bits in bits_of(method)[:2]:
        for name, part in quantize_sample(method, Scheme(bits, GROUP)).to_tensors().items():
            digest.update(name.encode())
            digest.update(part.contiguous().numpy().tobytes())
    return digest.hexdigest()


def main(origin: str, *names: str) -> None:
    """Print the fingerprints of methods by name as the last line."""
    if origin.endswith(".py"):
        load_plugin(Path(origin))
    made = {name: fingerprint(get_method(name)) for name in names}
    print(f"\n{json.dumps(made)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
