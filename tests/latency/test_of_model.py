"""What of a saved model is timed once, which layers count as alike, and what its memory is."""

from __future__ import annotations

import subprocess

import pytest
import torch
from torch import nn

import qbench
from qbench import Scheme
from qbench.checkpoint.packed_linear import QuantLinear
from qbench.checks.repetition import fresh_fingerprints
from qbench.checks.verdict import Broke
from qbench.errors import QbenchError
from qbench.kernels import registry
from qbench.kernels.samples import random_binary
from qbench.latency.end_to_end import Variant, peak_of
from qbench.latency.of_model import alike, time_model

PLUGIN = """
from qbench.kernels.contract import Kernel

KERNEL = Kernel("mine", lambda *arguments: None, devices=("none",))
print("loaded")
"""


def test_layers_are_alike_where_shape_format_and_bits_are():
    """Binary weights of other bits differ by the shapes of their planes alone."""
    model = nn.Sequential()
    for bits in (2, 3, 2):
        model.append(QuantLinear(random_binary((64, 64), bits, 32), None))
    groups = alike(model)
    assert [(group.weight.bits, group.count) for group in groups] == [(2, 2), (3, 1)]
    assert len({group.key for group in groups}) == 2


@pytest.mark.slow
def test_memory_at_the_peak_is_the_models_own(tiny, tmp_path, monkeypatch):
    """Libraries take 150 MB with the first model, a first forward pass 10; the model takes 2."""
    monkeypatch.setattr(registry, "_known", dict(registry.all_kernels()))
    monkeypatch.setattr(registry, "_origins", dict(registry._origins))
    plugin, folder = tmp_path / "mine.py", tmp_path / "saved"
    plugin.write_text(PLUGIN)
    registry.load_plugin(plugin)
    qbench.quantize(tiny(hidden_size=256), "rtn", Scheme(3, 32)).save(folder)
    commands, run = [], subprocess.run

    def kept(command, **options):
        done = run(command, **options)
        commands.append((command, done.stdout))
        return done

    monkeypatch.setattr(subprocess, "run", kept)
    decoding = time_model(folder, "float32", "cpu", lambda text: None)
    assert 0 < decoding.packed_peak_bytes < 6e6 > decoding.dense_peak_bytes
    assert len(commands) == 2 and all("loaded" in printed for _, printed in commands)
    threads = commands[0][0][-2]
    assert threads == str(torch.get_num_threads())


@pytest.mark.parametrize(
    "code, said, told",
    [
        (-9, "", "was ended by SIGKILL, as the system does where memory runs out"),
        (3, "", "ended with exit code 3"),
        (1, "Traceback\nValueError: no model\n", "ended with exit code 1; it last said: Traceback"),
    ],
)
def test_why_no_memory_was_measured_is_told(tmp_path, monkeypatch, code, said, told):
    """Where the system kills the process, it has said nothing."""
    ended = subprocess.CompletedProcess([], code, "", said)
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **options: ended)
    told = f"could not be measured: the process that measures it {told}"
    with pytest.raises(QbenchError, match=told):
        peak_of(tmp_path, Variant(True, "float32"), 4, 4)
    with pytest.raises(Broke, match="a fresh process (was ended by SIGKILL|ended with exit code)"):
        fresh_fingerprints("all", ("rtn",))
