"""The GPU kernels without a GPU: layouts, launches, Triton's interpreter, and compilation ahead.

What needs triton (the extra `gpu`) is skipped where it is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from places import ROOT
from qbench.errors import ConfigError
from qbench.formats import Binary, Dense
from qbench.kernels import tuned
from qbench.kernels.contract import Request
from qbench.kernels.gpu import products as gpu
from qbench.kernels.gpu import triton_configs
from qbench.kernels.gpu.triton_layout import derive
from samples import binary_weight, lattice_weight, normal, uniform_weight

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="triton is not installed (pip install -e '.[gpu]')",
)


def meant(planes):
    """The dense weight (out, in) that a derived layout means, float32."""
    word = planes.words.permute(2, 1, 0)[..., None]  # (out, P, in/32, 1)
    at = torch.arange(32)
    signs = 2.0 * ((word >> (at // 2 + 16 * (at % 2))) & 1) - 1
    grouped = (
        signs.flatten(2).unflatten(2, (-1, planes.group_size)).permute(0, 2, 3, 1)
    )  # (out, groups, g, P)
    alpha = planes.alpha.float().permute(2, 0, 1)[:, :, None]  # (out, groups, 1, P or 1)
    shift = 0 if planes.shift is None else planes.shift.float().T[..., None]
    if planes.uniform:
        places = 2.0 ** (planes.bits - 2 - torch.arange(planes.bits))
        return (((grouped * places).sum(-1) + shift) * alpha[..., 0]).flatten(1)
    return ((grouped * alpha).sum(-1) + shift).flatten(1)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_derived_layout_means_the_same_weight(bits):
    uniform = uniform_weight(6, 96, bits, 32, seed=bits)
    assert torch.equal(meant(derive(uniform)), uniform.dequantize())
    for shift in (False, True):
        binary = binary_weight(6, 96, bits, 32, shift, seed=bits)
        torch.testing.assert_close(meant(derive(binary)), binary.dequantize(), rtol=1e-6, atol=1e-6)


def test_the_derived_layout_is_as_small_as_the_stored_one():
    binary = binary_weight(64, 256, 3, 128)
    assert derive(binary).nbytes == sum(part.nbytes for part in binary.to_tensors().values())
    uniform = uniform_weight(64, 256, 3, 128)
    assert (
        derive(uniform).nbytes == 64 * 256 * 3 // 8 + 2 * 64 * 2 * 2
    )  # zero points in 16 bits, not in packed codes


@pytest.mark.parametrize("features, bits", [("codes", 3), ("signs", 2)])
def test_a_lattice_weight_is_a_product_of_transformed_inputs(features, bits):
    weight = lattice_weight(48, 96, bits, features=features)
    x, planes = normal(5, 96), derive(weight)
    inputs, shift = planes.inputs(x)
    found = planes.outputs(inputs @ meant(planes.planes).T, shift)
    torch.testing.assert_close(found, x @ weight.dequantize().T, rtol=1e-4, atol=1e-3)


def test_weights_that_are_not_served():
    with pytest.raises(
        ConfigError,
        match="no GPU kernels for the format 'dense'; multiply with the dequantized weight",
    ):
        derive(Dense(torch.ones(2, 32)))
    weight = Binary.from_planes(torch.ones(2, 4, 96), torch.ones(4, 6, 2).half(), None)
    with pytest.raises(ConfigError, match="groups of 16 in 96 inputs are not multiples of 32"):
        derive(weight)
    request = Request("binary", 2, 16, (4, 96), "cuda", torch.float16, 1)
    assert "groups of 16 in 96 inputs" in gpu._refuses(request)
    assert "up to 64" in gpu._refuses(request._replace(group_size=32, dtype=torch.float32, rows=65))
    if not torch.cuda.is_available():
        assert gpu.KERNELS[0].refusal(request) == "there is no GPU"
    assert "dtype torch.float64 is not one of" in gpu.KERNELS[0].refusal(
        request._replace(dtype=torch.float64)
    )


@pytest.mark.parametrize("m", [1, 8, 9, 16, 17, 64, 256, 1024, 1025, 4096])
def test_the_default_launch_covers_every_batch(m):
    config = triton_configs.default(m, 4096, 4096, torch.bfloat16)
    assert config.kind == ("skinny" if m <= 16 else "large" if m <= 1024 else "dense")
    assert triton_configs.default(m, 4096, 4096, torch.float32).kind == "skinny"
    assert 4096 % (config.split * config.block_k) == 0, "no program without work"
    assert triton_configs.default(m, 576, 64, torch.bfloat16).split == 1, (
        "short inputs are not split"
    )


def test_a_tuned_launch_is_found_by_shape(tmp_path):
    files = tuned.TunedFiles(tmp_path, triton_configs.TUNED.parse)
    assert files.of("NVIDIA X") == {}
    planes = derive(Binary.from_planes(torch.ones(2, 64, 128), torch.ones(64, 4, 2).half(), None))
    key = tuned.key_of(11, planes, torch.bfloat16)
    assert key == "m16 n64 k128 binary b2 g32 bfloat16"
    path = files.path("NVIDIA X")
    assert path == tmp_path / "NVIDIA_X.json"
    path.write_text(
        json.dumps({"gpu": "NVIDIA X", "configs": {key: {"kind": "skinny", "block_n": 64}}})
    )
    files.forget()
    assert files.of("NVIDIA X") == {key: triton_configs.Config("skinny", block_n=64)}
    path.write_text("{}")
    files.forget()
    with pytest.raises(ConfigError, match="is not a file of tuned configurations"):
        files.of("NVIDIA X")


@pytest.mark.slow
def test_triton_loads_only_with_a_product():
    code = "import sys, qbench, qbench.kernels.dispatch, qbench.kernels.gpu.products"
    code += "; assert 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


@needs_triton
def test_products_under_the_interpreter():
    command = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "--noconftest",
        str(ROOT / "tests" / "kernels" / "interpreted_triton.py"),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"TRITON_INTERPRET": "1"}
    )
    assert done.returncode == 0 and " passed" in done.stdout, (
        done.stdout[-3000:] + done.stderr[-3000:]
    )


@needs_triton
def test_compiled_ahead_without_spills(tmp_path):
    command = [
        sys.executable,
        "-P",
        str(ROOT / "benchmarks" / "aot.py"),
        "--quick",
        "--json",
        str(tmp_path / "aot.json"),
    ]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "TRITON_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "benchmarks"), *sys.path]),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "aot.json").read_text())["cases"]
    assert {(case["kernel"], case["architecture"]) for case in found} == {
        (kernel, architecture) for kernel in ("_skinny", "_large") for architecture in (80, 90, 100)
    }
    for case in found:
        assert (
            case["spill_loads"]
            == case["spill_stores"]
            == case["stack_bytes"]
            == 0
            < case["registers"]
            <= 255
        )
        assert any("MMA" in opcode for opcode in case["loop"]), "the products run on matrix units"
        assert case["overwritten"] == [], "registers that a product in flight reads"
