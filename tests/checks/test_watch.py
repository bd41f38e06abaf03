"""The watch on a plug-in in a run: what it costs is not the method's."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from qbench.checks import tour, watch
from qbench.checks.samples import sample_arguments, sample_inputs, sample_weight
from qbench.checks.watch import Clock, watched
from qbench.contracts import BlockResult, LinearStats, Scheme
from qbench.errors import MethodError
from qbench.methods.rtn import RTN
from qbench.plugin_file import import_plugin_file
from qbench.surroundings import Surroundings

WORK, LOOK = 1.0, 1000.0  # seconds of the method, and of a look at the surroundings


class _Time:
    """Seconds that pass only where somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0


time = _Time()


@dataclass(frozen=True)
class Weights(RTN):
    """Takes a second for each weight."""

    name: ClassVar[str] = "weights"

    def quantize_weight(self, weight: Tensor, scheme: Scheme) -> object:
        time.now += WORK
        return super().quantize_weight(weight, scheme)


@dataclass(frozen=True)
class Layers:
    """The same with statistics of the inputs."""

    name: ClassVar[str] = "layers"
    paper: ClassVar[str] = "Nobody 2026"
    format: ClassVar[str] = "uniform"
    bits: ClassVar[tuple[int, int]] = (2, 8)
    symmetric: ClassVar[bool] = True

    def quantize_linear(self, weight: Tensor, stats: LinearStats, scheme: Scheme) -> object:
        time.now += WORK
        return RTN().quantize_weight(weight, scheme)


@dataclass(frozen=True)
class Blocks(Layers):
    """The same of a whole block."""

    name: ClassVar[str] = "blocks"
    quantize_linear: ClassVar[None] = None

    def quantize_block(self, block: nn.Module, inputs: object, scheme: Scheme) -> BlockResult:
        time.now += WORK
        weights = {}
        for name, part in block.named_modules():
            if isinstance(part, nn.Linear):
                weights[name] = RTN().quantize_weight(part.weight.detach(), scheme)
        return BlockResult(weights=weights, parameters={}, log={})


@pytest.fixture(autouse=True)
def slow_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    look = Surroundings.now

    def slow() -> Surroundings:
        time.now += LOOK
        return look()

    monkeypatch.setattr(tour.Surroundings, "now", staticmethod(slow))
    monkeypatch.setattr(watch, "_now", lambda: time.now)


@pytest.mark.parametrize("method", [Weights(), Layers()])
def test_the_clock_has_all_but_the_first_call_of_each_weight(method: object) -> None:
    clock = Clock()
    spied = watched(method, clock)
    scheme = Scheme(3, 16)
    verb = "quantize_weight" if isinstance(method, Weights) else "quantize_linear"
    started = time.now
    for _ in range(3):
        arguments = sample_arguments(method, scheme, sample_weight(8, 32), sample_inputs(32))
        with torch.no_grad():
            getattr(spied, verb)(*arguments)
    assert time.now - started == 4 * (2 * LOOK + WORK), "the first call is made twice"
    assert time.now - started - clock.seconds == 3 * WORK


def test_the_clock_of_a_block_has_all_but_its_work() -> None:
    clock = Clock()
    spied = watched(Blocks(), clock)
    block = nn.Sequential(nn.Linear(32, 8, bias=False))
    with torch.no_grad():
        spied.quantize_block(block, None, Scheme(3, 16))
    assert clock.seconds == 2 * LOOK


def test_a_broken_promise_is_still_seen() -> None:
    @dataclass(frozen=True)
    class Other(Weights):
        name: ClassVar[str] = "other"

        def quantize_weight(self, weight: Tensor, scheme: Scheme) -> object:
            torch.rand(1)
            return super().quantize_weight(weight, scheme)

    with pytest.raises(MethodError, match="random state was used"):
        watched(Other(), Clock()).quantize_weight(sample_weight(8, 32), Scheme(3, 16))


LAZY = """
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from qbench.methods.rtn import RTN

@dataclass(frozen=True)
class Lazy(RTN):
    name: ClassVar[str] = "lazy"

    def quantize_weight(self, weight, scheme):
        import draws_on_import
        return super().quantize_weight(weight, scheme)
"""


def test_what_a_library_does_on_import_is_not_the_methods_doing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    (libraries / "draws_on_import.py").write_text("import random\nrandom.random()")
    monkeypatch.syspath_prepend(str(libraries))
    (tmp_path / "lazy_library.py").write_text(LAZY)
    method = import_plugin_file(tmp_path / "lazy_library.py").Lazy()
    watched(method, Clock()).quantize_weight(sample_weight(8, 32), Scheme(3, 16))
    del sys.modules["draws_on_import"]
