"""The promises of every kernel (`qbench check`), kept by the CUDA sources run on the CPU.

They run as on a GPU without Hopper's instructions, so that all rows of x take the kernels that the
stand-in can run.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from cuda_on_cpu import FunctionOnCpu, needs_compiler
from qbench.checks import kernels as checks
from qbench.checks.kernel_trial import Trial
from qbench.kernels import registry
from qbench.kernels.gpu.cuda import choice, launch, products
from qbench.kernels.gpu.cuda.choice import Gpu

pytestmark = needs_compiler


@pytest.fixture
def trial(request, monkeypatch, tmp_path_factory):
    """The kernel of this name, `cuda` or `cuda-fast`, on the CPU, registered."""
    folder = tmp_path_factory.getbasetemp() / "cuda_on_cpu"
    folder.mkdir(exist_ok=True)

    def function(source, name, macros, device):
        return FunctionOnCpu(source, name, macros, folder)

    for module in (*choice.MODULES.values(), products.dequantize):
        for name, value in list(vars(module).items()):
            if value is launch.function:
                monkeypatch.setattr(module, name, function)
            if hasattr(value, "cache_clear"):
                value.cache_clear()
    monkeypatch.setattr(launch, "function", function)
    monkeypatch.setattr(products, "gpu_of", lambda device: Gpu("A100", 80, 108))
    monkeypatch.setattr(products.torch.cuda, "current_device", lambda: -1)
    declared = registry.get_kernel(request.param)
    kernel = replace(declared, name="cuda-on-cpu", devices=("cpu",), available=lambda: None)
    monkeypatch.setattr(registry, "_known", {**registry.all_kernels(), kernel.name: kernel})
    registry.choose.cache_clear()
    yield Trial(kernel)
    monkeypatch.undo()
    registry.choose.cache_clear()
    for module in (*choice.MODULES.values(), products.dequantize):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


PROMISES = (
    checks.check_axes,
    checks.check_bias,
    checks.check_zero_rows,
    checks.check_range,
    checks.check_not_finite,
    checks.check_deterministic,
    checks.check_untouched,
    checks.check_written_weight,
    checks.check_other_weights,
    checks.check_prepared,
)


OF_FEW_ROWS = (
    checks.check_bias,
    checks.check_not_finite,
    checks.check_deterministic,
    checks.check_prepared,
)
CASES = [
    *(("cuda", check) for check in PROMISES),
    *(("cuda-fast", check) for check in OF_FEW_ROWS),
]


def name_of(part):
    return part if isinstance(part, str) else part.__name__


@pytest.mark.slow
@pytest.mark.parametrize("trial, check", CASES, indirect=["trial"], ids=name_of)
def test_a_promise_is_kept(trial, check):
    check(trial)
    assert trial.served
